// Package loopback finds ports on 127.0.0.1 for the servers that ctrloop starts for itself.
package loopback

import (
	"fmt"
	"net"
)

// FreePort asks the kernel for a TCP port of 127.0.0.1 that nobody listens on. Another process can take it
// before the caller's server listens: the server's start fails then, and must say so or try another.
func FreePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	return port, nil
}
