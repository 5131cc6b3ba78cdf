package sqldb

import (
	"net"
	"syscall"
	"testing"
	"time"
)

func TestConnectionsGiveUpAnEndThatIsGone(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := (&net.Dialer{Control: boundUnanswered}).Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		got, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout)
		if err != nil || time.Duration(got)*time.Millisecond != deadAfter {
			t.Errorf("unacknowledged data may wait %d ms: %v", got, err)
		}
	}); err != nil {
		t.Fatal(err)
	}
}
