package sqldb

import (
	"context"
	"database/sql"
	"fmt"
	"net"
	"runtime"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// A cut network says nothing: without these bounds a write, and all that queue up behind it, would wait a
// quarter of an hour for a PostgreSQL that can't be reached any more, and PostgreSQL would hold the locks of
// a node that can't be reached for two hours.
const (
	dialTimeout = 10 * time.Second
	deadAfter   = 30 * time.Second // of silence where an answer of the other kernel is due
	probeEvery  = 5 * time.Second
	probes      = 3
)

// openPool opens connections that notice when their other end is gone.
func openPool(url string) (*sql.DB, error) {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = dialTimeout
	}
	cfg.DialFunc = (&net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: deadAfter - probes*probeEvery, Interval: probeEvery, Count: probes},
		Control:         boundUnanswered,
	}).DialContext
	return stdlib.OpenDB(*cfg, stdlib.OptionAfterConnect(boundServer)), nil
}

// tcpUserTimeout is TCP_USER_TIMEOUT of Linux's tcp(7): how long, in milliseconds, sent data may stay without
// an acknowledgement.
const tcpUserTimeout = 0x12

func boundUnanswered(network, _ string, conn syscall.RawConn) error {
	if runtime.GOOS != "linux" || network == "unix" {
		return nil
	}
	var err error
	if controlErr := conn.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(deadAfter/time.Millisecond))
	}); controlErr != nil {
		return controlErr
	}
	return err
}

// boundServer asks PostgreSQL to do the same at its end of the connection. On a Unix socket it changes nothing.
func boundServer(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, `SELECT set_config('tcp_keepalives_idle', $1, false), set_config('tcp_keepalives_interval', $2, false),
		set_config('tcp_keepalives_count', $3, false), set_config('tcp_user_timeout', $4, false)`,
		fmt.Sprint(int((deadAfter - probes*probeEvery).Seconds())), fmt.Sprint(int(probeEvery.Seconds())), fmt.Sprint(probes), fmt.Sprint(deadAfter.Milliseconds()))
	if err != nil {
		return fmt.Errorf("bound the connection's silence: %w", err)
	}
	return nil
}
