package warehouse

import (
	"context"
	"errors"
	"testing"
)

func TestStart(t *testing.T) {
	e := startEngine(t, EngineConfig{})
	db := connect(t, e.DSN())
	var v string
	if err := db.QueryRow(context.Background(), "SELECT version()").Scan(&v); err != nil {
		t.Fatal(err)
	}
	t.Log(v)
	if err := db.Migrate(t.Context(), Options{}); err != nil {
		t.Fatal(err)
	}
	_ = errors.Is
}
