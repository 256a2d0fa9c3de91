"""Where backups lie: the local folder, and S3. One interface, whose promises every store keeps."""
