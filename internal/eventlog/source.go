package eventlog

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/klauspost/compress/zstd"
)

// stdinName is how standard input is called in messages.
const stdinName = "standard input"

type countingReader struct {
	io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	return n, err
}

// source is one log.
type source struct {
	name    string // without its folder
	path    string
	closers []func() error
	counter *countingReader
	size    int64 // bytes, -1 where it is not known
	line    int64 // of the file, from 1: of the row read last
	rows    int64
	ahead   int // rows of this source in the heap
	done    bool
	read    func() ([]Line, error) // events of the next row, the impression first

	newestImpression int64
}

// counts says whether an event of a row counts as one that is read ahead. A click that stands beside its impression and
// happens later does not: it waits in the heap while the rows behind it are read.
func (s *source) counts(l Line, nth int) bool {
	if nth > 0 {
		return false
	}
	if l.Click {
		return l.TimeMS <= s.newestImpression || s.newestImpression == 0
	}
	s.newestImpression = max(s.newestImpression, l.TimeMS)
	return true
}

func (s *source) close() error {
	var errs []error
	for _, c := range slices.Backward(s.closers) {
		errs = append(errs, c())
	}
	return errors.Join(errs...)
}

func openSource(path string, opt Options) (*source, error) {
	s := &source{path: path, name: filepath.Base(path), size: -1}
	var file io.Reader
	if path == "-" {
		if opt.Stdin == nil {
			return nil, errors.New("standard input is not given here: name a file")
		}
		s.name, s.path, file = stdinName, stdinName, opt.Stdin
	} else {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("open log: %w", err)
		}
		s.closers = append(s.closers, f.Close)
		if fi, err := f.Stat(); err == nil && fi.Mode().IsRegular() {
			s.size = fi.Size()
		}
		file = f
	}
	s.counter = &countingReader{Reader: file}
	if err := s.detect(opt); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", s.path, err), s.close())
	}
	return s, nil
}

// detect finds compression, encoding and format from how the log begins.
func (s *source) detect(opt Options) error {
	r, err := s.decompress(bufio.NewReaderSize(s.counter, 1<<16))
	if err != nil {
		return err
	}
	if err := skipMark(r); err != nil {
		return err
	}
	blank, err := skipBlank(r)
	s.line = blank
	if errors.Is(err, io.EOF) {
		s.read = func() ([]Line, error) { return nil, io.EOF }
		return nil
	}
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	head, _ := r.Peek(1)
	switch head[0] {
	case '{':
		s.read = jsonLines(s, r, opt)
	case '[':
		s.read, err = jsonArray(s, r, opt)
	default:
		s.read, err = openBandit(s, r, opt)
	}
	return err
}

// foreign are formats that begin with a mark of their own and are not read.
var foreign = []struct{ mark, what, advice string }{
	{"PK\x03\x04", "a zip archive", "unpack it first"},
	{"\xfd7zXZ\x00", "xz", "decompress it with xz -dc and give - for standard input"},
	{"PAR1", "Parquet", "write it as CSV or JSON lines first"},
	{"Obj\x01", "Avro", "write it as JSON lines first"},
	{"SQLite format 3", "an SQLite database", "export the table as CSV first"},
}

func (s *source) decompress(br *bufio.Reader) (*bufio.Reader, error) {
	magic, _ := br.Peek(16)
	for _, f := range foreign {
		if bytes.HasPrefix(magic, []byte(f.mark)) {
			return nil, fmt.Errorf("is %s: %s", f.what, f.advice)
		}
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := newGzip(br)
		if err != nil {
			return nil, fmt.Errorf("looks like gzip but is not: %w", err)
		}
		return bufio.NewReaderSize(z, 1<<16), nil
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, fmt.Errorf("looks like zstd but is not: %w", err)
		}
		s.closers = append(s.closers, func() error { z.Close(); return nil })
		return bufio.NewReaderSize(z, 1<<16), nil
	case bytes.HasPrefix(magic, []byte("BZh")):
		return bufio.NewReaderSize(bzip2.NewReader(br), 1<<16), nil
	}
	return br, nil
}

// gzipMembers reads all members of a gzip file, and the zero bytes that some tools leave behind the last.
type gzipMembers struct {
	under *bufio.Reader
	z     *gzip.Reader
}

func newGzip(br *bufio.Reader) (*gzipMembers, error) {
	z, err := gzip.NewReader(br)
	if err != nil {
		return nil, err
	}
	z.Multistream(false)
	return &gzipMembers{br, z}, nil
}

// Read implements io.Reader.
func (g *gzipMembers) Read(p []byte) (int, error) {
	for {
		n, err := g.z.Read(p)
		if !errors.Is(err, io.EOF) || n > 0 {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return n, err
		}
		if err := g.next(); err != nil {
			return 0, err
		}
	}
}

// next goes to the next member; io.EOF where nothing but zeros is left.
func (g *gzipMembers) next() error {
	for {
		b, err := g.under.ReadByte()
		if err != nil {
			return err
		}
		if b == 0 {
			continue
		}
		if err := g.under.UnreadByte(); err != nil {
			return err
		}
		if err := g.z.Reset(g.under); err != nil {
			return fmt.Errorf("behind the compressed log stands something that is not gzip: %w", err)
		}
		g.z.Multistream(false)
		return nil
	}
}

// skipMark passes over a byte order mark of UTF-8 and refuses other encodings that can be told.
func skipMark(r *bufio.Reader) error {
	head, _ := r.Peek(4)
	switch {
	case bytes.HasPrefix(head, []byte{0xef, 0xbb, 0xbf}):
		_, err := r.Discard(3)
		return err
	case bytes.HasPrefix(head, []byte{0xff, 0xfe}), bytes.HasPrefix(head, []byte{0xfe, 0xff}), bytes.IndexByte(head, 0) >= 0:
		return errors.New("is not UTF-8 text (UTF-16, or binary): convert it, for example with iconv -f UTF-16 -t UTF-8")
	}
	return nil
}

// skipBlank passes over blank lines at the start and counts them.
func skipBlank(r *bufio.Reader) (lines int64, err error) {
	for {
		b, err := r.ReadByte()
		if err != nil {
			return lines, err
		}
		switch b {
		case '\n':
			lines++
		case ' ', '\t', '\r':
		default:
			return lines, r.UnreadByte()
		}
	}
}
