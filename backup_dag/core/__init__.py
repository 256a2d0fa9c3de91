"""Everything that is true without Dagster. Down to back up, up to restore:

    PostgreSQL
      │  pg_dump           ↑ psql, pg_restore     stages/dump.py, psql.py
      ▼  (read along)                             stages/fingerprint.py
    gzip                   ↑ gunzip               stages/compression.py
      ▼
    gpg, AES256            ↑ gpg                  stages/encryption.py
      ▼
    SHA-256                ↑ compare              stages/checksum.py
      ▼
    local store ──► S3     ↑ fetch                store/

The verbs (backup, offsite, verify, cleanup, restore, rollback, drill, doctor) string the stages together;
the catalog knows which backups there are. A room imports only rooms below it:

    doctor
    drilling/
    restoring/  keeping/
    watching/
    backup  offsite  verify  rekey
    catalog  holds  reading
    audit  history
    stages/  store/  psql
    beneath  databases  key  privileges  signing
    clients  gpg  postgres  nights  programs
    looking
    address
    journal  work  process
    stream
    manifest  settings  in_words
    options
    errors

The layers within drilling/, restoring/, keeping/ and watching/ are drawn in ARCHITECTURE.md.
"""
