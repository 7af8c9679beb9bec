package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"path/filepath"
	"slices"
	"testing"
)

// windowFiles is the way down through the join: what a file calls stands in it or in one before it, so that they can be read
// from first to last.
var windowFiles = []string{
	"doc.go", "config.go", "ledger.go", "index.go", "sources.go", "dictionary.go", "record.go", "base.go", "bucket.go", "label.go",
	"hash.go", "memory.go", "transaction.go", "window.go", "verdict.go", "input.go", "watermark.go", "warm.go", "snapshot.go", "image.go",
}

// TestWindowReadsDownwards: types may name each other, calls go one way.
func TestWindowReadsDownwards(t *testing.T) {
	dir := filepath.Join("..", "..", "joiner", "window")
	fset := token.NewFileSet()
	var files []*ast.File
	for _, p := range ourPackages(t) {
		if p.folder() != "joiner/window" {
			continue
		}
		for _, name := range p.GoFiles {
			if !slices.Contains(windowFiles, name) {
				t.Fatalf("%s has no place in the order of the files", name)
			}
			file, err := parser.ParseFile(fset, filepath.Join(dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, file)
		}
	}
	if len(files) != len(windowFiles) {
		t.Fatalf("%d files, the order names %d", len(files), len(windowFiles))
	}
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	conf := types.Config{
		// What is imported does not matter here, so it is empty, and what is missing is no error.
		Importer: importerFunc(func(path string) (*types.Package, error) {
			p := types.NewPackage(path, filepath.Base(path))
			p.MarkComplete()
			return p, nil
		}),
		Error: func(error) {},
	}
	own, _ := conf.Check("window", fset, files, info)
	place := func(pos token.Pos) int { return slices.Index(windowFiles, filepath.Base(fset.Position(pos).Filename)) }
	calls := 0
	for id, used := range info.Uses {
		if f, ok := used.(*types.Func); !ok || f.Pkg() != own {
			continue
		}
		calls++
		if place(used.Pos()) > place(id.Pos()) {
			t.Errorf("%s uses %s of %s, which comes after it", fset.Position(id.Pos()), used.Name(), windowFiles[place(used.Pos())])
		}
	}
	if calls < 300 {
		t.Errorf("only %d uses of functions were found: the check does not see", calls)
	}
}
