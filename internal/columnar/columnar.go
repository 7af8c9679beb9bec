// Package columnar is the door to Arrow: tables of datasets as Arrow IPC files, to and from slices of
// structs. A field takes part when it has an `arrow:"name"` tag; the kinds that a dataset needs are
// string, bool, int64, uint64, float64 and []byte. Arrow's module path carries its major version, so an
// upgrade is a change of this folder alone.
package columnar

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/ipc"
	"github.com/apache/arrow/go/v17/arrow/memory"
)

// batchRows bounds the rows of one record batch, so that a reader need not hold a whole table of images.
const batchRows = 4096

type column struct {
	field int // index in the struct
	arrow arrow.Field
}

func columns(t reflect.Type) ([]column, error) {
	var cols []column
	for i := range t.NumField() {
		f := t.Field(i)
		name, ok := f.Tag.Lookup("arrow")
		if !ok {
			continue
		}
		var dt arrow.DataType
		switch {
		case f.Type.Kind() == reflect.String:
			dt = arrow.BinaryTypes.String
		case f.Type.Kind() == reflect.Bool:
			dt = arrow.FixedWidthTypes.Boolean
		case f.Type.Kind() == reflect.Int64:
			dt = arrow.PrimitiveTypes.Int64
		case f.Type.Kind() == reflect.Uint64:
			dt = arrow.PrimitiveTypes.Uint64
		case f.Type.Kind() == reflect.Float64:
			dt = arrow.PrimitiveTypes.Float64
		case f.Type == reflect.TypeFor[[]byte]():
			dt = arrow.BinaryTypes.Binary
		default:
			return nil, fmt.Errorf("column %s of %s: a %s has no Arrow column here", name, t, f.Type)
		}
		cols = append(cols, column{i, arrow.Field{Name: name, Type: dt}})
	}
	if len(cols) == 0 {
		return nil, fmt.Errorf("%s has no field with an arrow tag", t)
	}
	return cols, nil
}

func schemaOf(cols []column) *arrow.Schema {
	fields := make([]arrow.Field, len(cols))
	for i, c := range cols {
		fields[i] = c.arrow
	}
	return arrow.NewSchema(fields, nil)
}

// Write writes rows as an Arrow IPC file. The bytes depend on the rows alone: the same rows give the same file.
func Write[T any](path string, rows []T) (err error) {
	cols, err := columns(reflect.TypeFor[T]())
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w, err := ipc.NewFileWriter(f, ipc.WithSchema(schemaOf(cols)))
	if err != nil {
		return fmt.Errorf("write table %s: %w", filepath.Base(path), err)
	}
	b := array.NewRecordBuilder(memory.DefaultAllocator, schemaOf(cols))
	defer b.Release()
	for start := 0; start < len(rows); start += batchRows {
		for _, row := range rows[start:min(start+batchRows, len(rows))] {
			v := reflect.ValueOf(row)
			for i, c := range cols {
				appendValue(b.Field(i), v.Field(c.field))
			}
		}
		rec := b.NewRecord()
		err := w.Write(rec)
		rec.Release()
		if err != nil {
			return fmt.Errorf("write table %s: %w", filepath.Base(path), err)
		}
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("write table %s: %w", filepath.Base(path), err)
	}
	return f.Sync()
}

func appendValue(b array.Builder, v reflect.Value) {
	switch b := b.(type) {
	case *array.StringBuilder:
		b.Append(v.String())
	case *array.BooleanBuilder:
		b.Append(v.Bool())
	case *array.Int64Builder:
		b.Append(v.Int())
	case *array.Uint64Builder:
		b.Append(v.Uint())
	case *array.Float64Builder:
		b.Append(v.Float())
	case *array.BinaryBuilder:
		b.Append(v.Bytes())
	}
}

// Read reads an Arrow IPC file into structs. Columns are found by name; a missing column or another type
// is an error, further columns are ignored.
func Read[T any](path string) (rows []T, err error) {
	cols, err := columns(reflect.TypeFor[T]())
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read table: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	r, err := ipc.NewFileReader(f)
	if err != nil {
		return nil, fmt.Errorf("%s is not an Arrow IPC file: %w", filepath.Base(path), err)
	}
	index := make([]int, len(cols))
	for i, c := range cols {
		at := r.Schema().FieldIndices(c.arrow.Name)
		if len(at) != 1 || !arrow.TypeEqual(r.Schema().Field(at[0]).Type, c.arrow.Type) {
			return nil, fmt.Errorf("%s: want one column %q of type %s, the file has %s", filepath.Base(path), c.arrow.Name, c.arrow.Type, r.Schema())
		}
		index[i] = at[0]
	}
	for k := range r.NumRecords() {
		rec, err := r.Record(k)
		if err != nil {
			return nil, fmt.Errorf("%s, batch %d: %w", filepath.Base(path), k, err)
		}
		for n := range int(rec.NumRows()) {
			var row T
			v := reflect.ValueOf(&row).Elem()
			for i, c := range cols {
				setValue(v.Field(c.field), rec.Column(index[i]), n)
			}
			rows = append(rows, row)
		}
	}
	return rows, nil
}

func setValue(v reflect.Value, col arrow.Array, n int) {
	switch col := col.(type) {
	case *array.String:
		v.SetString(string([]byte(col.Value(n)))) // a copy: the record's buffers are reused
	case *array.Boolean:
		v.SetBool(col.Value(n))
	case *array.Int64:
		v.SetInt(col.Value(n))
	case *array.Uint64:
		v.SetUint(col.Value(n))
	case *array.Float64:
		v.SetFloat(col.Value(n))
	case *array.Binary:
		v.SetBytes(append([]byte(nil), col.Value(n)...))
	}
}
