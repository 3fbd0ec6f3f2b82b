"""Quality and size of real files, against classical codecs, as tables and pages."""
