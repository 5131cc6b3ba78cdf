package bench

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"steward/internal/device"
)

// database is a fresh database on the PostgreSQL server that --database names.
type database struct {
	admin, url, name string
	postmaster       process // 0 when it runs on another machine: then its processor time is not known
}

// makeDatabase makes a database. The URL names one in which the account may create others.
func makeDatabase(ctx context.Context, admin string) (*database, error) {
	u, err := url.Parse(admin)
	if err != nil || (u.Scheme != "postgres" && u.Scheme != "postgresql") {
		return nil, fmt.Errorf("--database %q: want postgres://…", admin)
	}
	db := &database{admin: admin, name: "steward_bench_" + strings.ToLower(device.RandomName(10))}
	conn, err := pgx.Connect(ctx, admin)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing is left to lose
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+db.name); err != nil {
		return nil, err
	}
	var backend int
	if err := conn.QueryRow(ctx, "SELECT pg_backend_pid()").Scan(&backend); err != nil {
		return nil, err
	}
	db.postmaster = parentIfPostgres(process(backend))
	u.Path = "/" + db.name
	db.url = u.String()
	return db, nil
}

// parentIfPostgres returns the postmaster of a backend on this machine, else 0.
func parentIfPostgres(backend process) process {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", backend))
	if err != nil || !strings.HasPrefix(string(comm), "postgres") {
		return 0
	}
	stat, err := backend.stat()
	if err != nil {
		return 0
	}
	parent, err := strconv.Atoi(stat[1])
	if err != nil {
		return 0
	}
	return process(parent)
}

func (d *database) cpu() (time.Duration, error) {
	if d.postmaster == 0 {
		return 0, nil
	}
	return d.postmaster.familyCPU()
}

func (d *database) drop() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	conn, err := pgx.Connect(ctx, d.admin)
	if err != nil {
		return err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing is left to lose
	_, err = conn.Exec(ctx, "DROP DATABASE "+d.name+" WITH (FORCE)")
	return err
}
