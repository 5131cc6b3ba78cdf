//go:build !unix

package link

import "errors"

// canTry is false here: a connection keeps the goroutine that reads it, with the memory of its stack.
const canTry = false

func readNow(uintptr, []byte) (int, error) { return 0, errors.ErrUnsupported }

func readable(uintptr) bool { return true }
