"""From records to what an optimizer step reads: conversations to ids, rows, windows, blocks of plain text."""
