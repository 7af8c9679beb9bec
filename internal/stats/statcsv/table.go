package statcsv

import (
	"bufio"
	"compress/gzip"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

// ErrInput is what every complaint about a file's contents wraps.
var ErrInput = errors.New("bad input")

// table reads the named columns of a CSV, row by row. Gzip is recognised by its magic bytes.
type table struct {
	r     *csv.Reader
	at    []int // index of each wanted column, -1 for an optional one that is missing
	names []string
	row   []string
	rows  int
}

// open reads the header. A column whose name ends in "?" may be missing.
func open(in io.Reader, columns ...string) (*table, error) {
	var required []string
	names := make([]string, len(columns))
	for i, c := range columns {
		var optional bool
		if names[i], optional = strings.CutSuffix(c, "?"); !optional {
			required = append(required, c)
		}
	}
	br := bufio.NewReaderSize(in, 1<<16)
	if magic, _ := br.Peek(2); len(magic) == 2 && magic[0] == 0x1f && magic[1] == 0x8b {
		gz, err := gzip.NewReader(br)
		if err != nil {
			return nil, fmt.Errorf("%w: not a gzip file after all: %v", ErrInput, err)
		}
		br = bufio.NewReaderSize(gz, 1<<16)
	}
	t := &table{r: csv.NewReader(br), names: names}
	t.r.ReuseRecord = true
	header, err := t.r.Read()
	if err == io.EOF {
		return nil, fmt.Errorf("%w: the file is empty, want a header with %s", ErrInput, strings.Join(required, ", "))
	} else if err != nil {
		return nil, fmt.Errorf("%w: header: %v", ErrInput, err)
	}
	have := map[string]int{}
	for i, h := range header {
		h = strings.TrimSpace(strings.TrimPrefix(h, "\ufeff"))
		if _, dup := have[h]; !dup {
			have[h] = i
		}
	}
	for n, c := range names {
		i, ok := have[c]
		if !ok && c != columns[n] {
			i, ok = -1, true
		}
		if !ok {
			return nil, fmt.Errorf(
				"%w: no column %q in the header %q, want %s",
				ErrInput,
				c,
				strings.Join(header, ","),
				strings.Join(required, ", "),
			)
		}
		t.at = append(t.at, i)
	}
	return t, nil
}

// next advances; false at the end.
func (t *table) next() (bool, error) {
	row, err := t.r.Read()
	if err == io.EOF {
		if t.rows == 0 {
			return false, fmt.Errorf("%w: a header, but no rows", ErrInput)
		}
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("%w: %v", ErrInput, err)
	}
	t.row = row
	t.rows++
	return true, nil
}

// has says whether the optional column i is there.
func (t *table) has(i int) bool { return t.at[i] >= 0 }

func (t *table) text(i int) string { return strings.TrimSpace(t.row[t.at[i]]) }

func (t *table) bad(i int, format string, args ...any) error {
	line, _ := t.r.FieldPos(t.at[i])
	return fmt.Errorf("%w: line %d, column %q: %s", ErrInput, line, t.names[i], fmt.Sprintf(format, args...))
}

// maxCount is the largest number up to which sums of counts are exact.
const maxCount = 1 << 53

// count is a whole number, not negative, at most maxCount; "3.0" is one.
func (t *table) count(i int) (int64, error) {
	s := t.text(i)
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		switch {
		case n < 0:
			return 0, t.bad(i, "%d is negative, want a count", n)
		case n > maxCount:
			return 0, t.bad(i, "%d is more than can be counted exactly (%d)", n, int64(maxCount))
		}
		return n, nil
	}
	f, err := t.number(i)
	switch {
	case err != nil:
		return 0, err
	case f < 0:
		return 0, t.bad(i, "%g is negative, want a count", f)
	case f != math.Trunc(f) || f > maxCount:
		return 0, t.bad(i, "%q is not a whole number", s)
	}
	return int64(f), nil
}

func (t *table) number(i int) (float64, error) {
	s := t.text(i)
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return 0, t.bad(i, "%q is not a number", s)
	}
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return 0, t.bad(i, "%q is not finite", s)
	}
	return f, nil
}
