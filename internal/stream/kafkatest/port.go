package kafkatest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Ports of brokers lie below those that a kernel gives to connections (from 32768 on Linux, 49152 elsewhere): a broker
// binds seconds after its port was chosen, and again after a test has killed it, and one of its peers' connections could
// sit there by then.
const (
	lowestPort = 15_000
	portEnd    = 32_000
)

// freePort finds a port of 127.0.0.1 that nobody listens on.
func freePort() (int, error) {
	var err error
	for range 100 {
		port := lowestPort + rand.IntN(portEnd-lowestPort)
		var l net.Listener
		if l, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("find a free port from %d to %d: %w", lowestPort, portEnd, err)
}
