package warehouse

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/ext"
)

// WithNumbers gives the queries of the returned context a table name(key String, value Float64) with these rows, one
// per key. It travels with each query (ClickHouse's external data), so that figures which only this process has can be
// joined without a place in the schema, and without a query text as long as the table.
func WithNumbers(ctx context.Context, name string, numbers map[string]float64) (context.Context, error) {
	t, err := ext.NewTable(name, ext.Column("key", "String"), ext.Column("value", "Float64"))
	for _, key := range slices.Sorted(maps.Keys(numbers)) {
		if err == nil {
			err = t.Append(key, numbers[key])
		}
	}
	if err != nil {
		return nil, fmt.Errorf("table %s of %d numbers: %w", name, len(numbers), err)
	}
	return clickhouse.Context(ctx, clickhouse.WithExternalTable(t)), nil
}
