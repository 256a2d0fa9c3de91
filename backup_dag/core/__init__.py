"""Everything that is true without Dagster. Down to back up, up to restore:

    PostgreSQL
      │  pg_dump           ↑ psql, pg_restore     stages/dump.py
      ▼  (read along)                             stages/fingerprint.py
    gzip                   ↑ gunzip               stages/compression.py
      ▼
    gpg, AES256            ↑ gpg                  stages/encryption.py
      ▼
    SHA-256                ↑ compare              stages/checksum.py
      ▼
    local store ──► S3     ↑ fetch                store/

The verbs (backup, offsite, verify, cleanup, restore, rollback, doctor) string the stages together; the
catalog knows which backups there are. A room imports only rooms below it:

    doctor
    tables
    restore  rollback
    plan
    obstacles  roles
    alerts  backup  metrics  offsite  verify  proof  cleanup
    caution  judgement
    cleaned  usual
    catalog  holds  reading  target  retention  leftovers
    audit
    stages/  store/
    databases  delivery  key  privileges
    confirmation  history  clients  gpg  postgres
    address
    journal  work  process
    stream
    manifest  settings
    errors
"""
