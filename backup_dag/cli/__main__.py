from backup_dag.cli.main import main

main()
