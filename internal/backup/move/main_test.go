package move

import (
	"os"
	"testing"

	"steward/internal/stewardtest"
)

func TestMain(m *testing.M) { os.Exit(stewardtest.Main(m)) }
