package columnar

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"

	"github.com/parquet-go/parquet-go"
)

// WriteParquet writes rows as a Parquet file (Zstandard), with the columns of Write. Arrow's own writer would make the binary 16 MB larger.
func WriteParquet[T any](path string, rows []T) (err error) {
	row, err := tagged(reflect.TypeFor[T]())
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := parquet.NewWriter(f, parquet.SchemaOf(reflect.New(row).Interface()), parquet.Compression(&parquet.Zstd),
		parquet.MaxRowsPerRowGroup(batchRows))
	for _, r := range rows {
		if err := w.Write(reflect.ValueOf(r).Convert(row).Interface()); err != nil {
			return fmt.Errorf("write table %s: %w", filepath.Base(path), err)
		}
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("write table %s: %w", filepath.Base(path), err)
	}
	return f.Sync()
}

// tagged is a struct type whose fields have their Arrow names as Parquet names; t converts to it, since tags make no difference.
func tagged(t reflect.Type) (reflect.Type, error) {
	cols, err := columns(t)
	if err != nil {
		return nil, err
	}
	if len(cols) != t.NumField() {
		return nil, fmt.Errorf("%s has fields that are no columns", t)
	}
	fields := make([]reflect.StructField, len(cols))
	for i, c := range cols {
		fields[i] = reflect.StructField{Name: t.Field(c.field).Name, Type: t.Field(c.field).Type,
			Tag: reflect.StructTag(fmt.Sprintf("parquet:%q", c.arrow.Name))}
	}
	return reflect.StructOf(fields), nil
}
