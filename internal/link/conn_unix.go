//go:build unix

package link

import "syscall"

// canTry tells whether a socket can be asked for what has come without waiting.
const canTry = true

// readNow returns errQuiet when nothing has come.
func readNow(fd uintptr, p []byte) (n int, err error) {
	for {
		n, err = syscall.Read(int(fd), p)
		switch err {
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			return 0, errQuiet
		}
		return n, err
	}
}

// readable tells whether a read would not wait: something has come, or the end, or an error.
func readable(fd uintptr) bool {
	var one [1]byte
	_, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	return err != syscall.EAGAIN // what else it is, the read will tell
}
