// Package loopback finds ports on 127.0.0.1 for the servers that ctrloop starts for itself.
package loopback

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
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

// KeptPorts are the ports that KeepPorts wrote to a file, nil where there are not as many: a server that comes back on the port that it
// had is found by clients that know its old address.
func KeptPorts(file string, n int) []int {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	var ports []int
	for text := range strings.FieldsSeq(string(raw)) {
		port, err := strconv.Atoi(text)
		if err != nil || port < 1 || port > 65535 {
			return nil
		}
		ports = append(ports, port)
	}
	if len(ports) != n {
		return nil
	}
	return ports
}

// KeepPorts writes the ports of a server that has started.
func KeepPorts(file string, ports ...int) error {
	text := strings.Trim(fmt.Sprint(ports), "[]") + "\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return fmt.Errorf("keep the ports of a server: %w", err)
	}
	return nil
}

// Free says whether nobody listens on a port of 127.0.0.1.
func Free(port int) bool {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return false
	}
	return l.Close() == nil
}
