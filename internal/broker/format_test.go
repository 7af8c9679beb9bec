package broker

import (
	"bytes"
	"testing"
)

// One id of 64 began with a minus sign, and its folder could not be formatted.
func TestClusterID(t *testing.T) {
	for first := range 256 {
		id := clusterID(bytes.NewReader(bytes.Repeat([]byte{byte(first)}, 16)))
		if len(id) != 22 || id[0] == '-' {
			t.Fatalf("%d: %q", first, id)
		}
	}
}
