"""From a download to records: one reader per dataset."""
