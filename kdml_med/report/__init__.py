"""What every report is made of: documents, pages, tables, figures and words; whose findings they hold, others know."""
