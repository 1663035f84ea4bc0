"""Parts of a report: sections, tables, figures, and how they are rendered."""
