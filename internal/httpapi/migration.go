package httpapi

import (
	"embed"
	"io/fs"

	"steward/internal/sqldb"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migration makes the tables of idempotency keys.
func Migration() sqldb.Migration {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the folder is embedded above
	}
	return sqldb.Migration{Room: "httpapi", Files: files}
}
