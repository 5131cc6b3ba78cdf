// Package nodestest proves that several servers are one: real processes on a real PostgreSQL, of which
// nodes are killed, the database is stopped and the network between nodes is cut.
package nodestest

import (
	"os"
	"testing"

	"steward/internal/stewardtest"
)

func TestMain(m *testing.M) { os.Exit(stewardtest.Main(m)) }
