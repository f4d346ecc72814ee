"""Images in any form: folders, Parquet, webdataset shards, data sets of the Hub."""
