package stream_test

import (
	"os"
	"testing"

	"ctrloop/internal/stream/streamtest"
)

func TestMain(m *testing.M) { os.Exit(streamtest.M{M: m}.Run()) }
