package telemetry

import (
	"io"
	"os"
	"sync"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/rs/zerolog"
)

// LogConfig says what is logged and how.
type LogConfig struct {
	// Level is the least severe level written: trace, debug, info, warn or error. Empty is info.
	Level string `yaml:"level"`
	// Format is console (for people), json (for machines), or auto: console on a terminal, json elsewhere.
	Format string `yaml:"format"`
}

// DefaultLogConfig returns level info in the format that fits the writer.
func DefaultLogConfig() LogConfig { return LogConfig{Level: "info", Format: "auto"} }

// NewLogger builds the logger of a process. Time stamps are RFC 3339 with milliseconds, in UTC. An unknown
// level counts as info, an unknown format as auto: configuration is validated before it gets here.
func NewLogger(cfg LogConfig, w io.Writer) zerolog.Logger {
	level, err := zerolog.ParseLevel(cfg.Level)
	if err != nil || cfg.Level == "" {
		level = zerolog.InfoLevel
	}
	w = &lockedWriter{w: w}
	if cfg.Format == "console" || (cfg.Format != "json" && IsTerminal(underlying(w))) {
		w = zerolog.ConsoleWriter{
			Out:        w,
			NoColor:    !IsTerminal(underlying(w)) || os.Getenv("NO_COLOR") != "",
			TimeFormat: "15:04:05.000",
		}
	}
	return zerolog.New(w).Level(level).Hook(timestamps{now: time.Now})
}

// timestamps adds the time of each line. A hook instead of zerolog's With().Timestamp(), whose format is a
// global variable of the library.
type timestamps struct{ now func() time.Time }

// Run implements zerolog.Hook.
func (t timestamps) Run(e *zerolog.Event, _ zerolog.Level, _ string) {
	e.Str(zerolog.TimestampFieldName, t.now().UTC().Format("2006-01-02T15:04:05.000Z07:00"))
}

// IsTerminal reports whether w is a terminal.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isatty.IsTerminal(f.Fd())
}

// lockedWriter lets several goroutines log to a writer that is not safe for that by itself, one whole line at
// a time.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

// Write implements io.Writer.
func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// underlying returns the writer inside a lockedWriter.
func underlying(w io.Writer) io.Writer {
	if l, ok := w.(*lockedWriter); ok {
		return l.w
	}
	return w
}
