"""The reader's side: records and published numbers to frames, sentences, figures and pages. Nothing here trains."""
