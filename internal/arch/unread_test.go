package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// unreadFields are fields that the code of this module does not read although a file or a request can set them, each
// with who reads them instead.
var unreadFields = map[string]string{}

// TestWhatIsSetIsRead finds keys of the configuration, and fields of requests and records, that can be set and that nothing
// reads: whoever sets one believes that it does something (review N2).
func TestWhatIsSetIsRead(t *testing.T) {
	checked := typeCheck(t)
	r := reads{map[*types.Var]bool{}, map[*types.Var][]*types.Var{}}
	leaves := map[*types.Var]bool{}
	for _, p := range checked {
		markReads(p, r)
		p.leaving(leaves)
	}
	r.resolve(leaves)
	found := map[string]bool{}
	for _, p := range checked {
		for _, f := range settable(p) {
			if !r.read[f.v] {
				found[f.name] = true
			}
		}
	}
	for name := range found {
		if unreadFields[name] == "" {
			t.Errorf("%s can be set, and nothing reads it", name)
		}
	}
	for name := range unreadFields {
		if !found[name] {
			t.Errorf("%s is listed as unread and is not, or is not there", name)
		}
	}
}

// checkedPackage is a package of ours with its types. All share one universe: a field is one object everywhere.
type checkedPackage struct {
	path  string
	files []*ast.File
	info  *types.Info
}

// typeCheck checks the shipped code of all our packages from source, what they import from others from the compiler's
// export data.
func typeCheck(t *testing.T) []checkedPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-export", "-deps", "-json=ImportPath,Dir,GoFiles,Imports,Module,Export,Standard", "./...")
	cmd.Dir = "../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, &stderr)
	}
	type listed struct {
		ImportPath, Dir, Export string
		GoFiles                 []string
		Module                  *struct{ Path string }
	}
	exports := map[string]string{}
	var ours []listed // dependencies first
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if p.Module != nil && p.Module.Path == module {
			ours = append(ours, p)
		} else {
			exports[p.ImportPath] = p.Export
		}
	}
	fset := token.NewFileSet()
	done := map[string]*types.Package{}
	foreign := importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) {
		if exports[path] == "" {
			return nil, fmt.Errorf("no export data of %s", path)
		}
		return os.Open(exports[path])
	})
	imp := importerFunc(func(path string) (*types.Package, error) {
		if p := done[path]; p != nil {
			return p, nil
		}
		return foreign.Import(path)
	})
	var checked []checkedPackage
	for _, p := range ours {
		c := checkedPackage{path: strings.TrimPrefix(p.ImportPath, module+"/"), info: &types.Info{
			Selections: map[*ast.SelectorExpr]*types.Selection{}, Defs: map[*ast.Ident]types.Object{}, Types: map[ast.Expr]types.TypeAndValue{},
			Uses: map[*ast.Ident]types.Object{},
		}}
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			c.files = append(c.files, f)
		}
		conf := types.Config{Importer: imp}
		if done[p.ImportPath], err = conf.Check(p.ImportPath, fset, c.files, c.info); err != nil {
			t.Fatalf("%s: %v", p.ImportPath, err)
		}
		checked = append(checked, c)
	}
	return checked
}

type importerFunc func(path string) (*types.Package, error)

func (f importerFunc) Import(path string) (*types.Package, error) { return f(path) }

// judges are functions that look at a value only to say whether it is right.
var judges = regexp.MustCompile(`^(Validate|Check|problems)$`)

// reads says which fields are read, and which are only handed on to another field.
type reads struct {
	read map[*types.Var]bool
	flow map[*types.Var][]*types.Var
}

// resolve marks what is handed on to a field that is read, or that leaves the process: one with a json tag outside of
// the control log, whose records the code itself reads again.
func (r reads) resolve(leaves map[*types.Var]bool) {
	for changed := true; changed; {
		changed = false
		for from, tos := range r.flow {
			if r.read[from] {
				continue
			}
			for _, to := range tos {
				if r.read[to] || leaves[to] {
					r.read[from], changed = true, true
					break
				}
			}
		}
	}
}

// markReads notes every field that is read: selected anywhere but on the left of an assignment, and not only to judge it
// (Validate). A struct that is converted to another one is read as a whole.
func markReads(p checkedPackage, r reads) {
	skip := map[*ast.SelectorExpr]bool{}
	for _, file := range p.files {
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				return !judges.MatchString(n.Name.Name)
			case *ast.AssignStmt:
				for i, l := range n.Lhs {
					to, ok := l.(*ast.SelectorExpr)
					if !ok || n.Tok != token.ASSIGN {
						continue
					}
					skip[to] = true
					if len(n.Rhs) == len(n.Lhs) {
						p.hand(n.Rhs[i], p.fieldOf(to), skip, r)
					}
				}
			case *ast.KeyValueExpr:
				if key, ok := n.Key.(*ast.Ident); ok {
					if v, ok := p.info.Uses[key].(*types.Var); ok && v.IsField() {
						p.hand(n.Value, v.Origin(), skip, r)
					}
				}
			case *ast.SelectorExpr:
				if s := p.info.Selections[n]; s != nil && s.Kind() == types.FieldVal && !skip[n] {
					markPath(s, r.read)
				}
			case *ast.CallExpr:
				if tv := p.info.Types[n.Fun]; tv.IsType() {
					if st, ok := p.info.Types[n.Args[0]].Type.Underlying().(*types.Struct); ok {
						for i := range st.NumFields() {
							r.read[st.Field(i)] = true
						}
					}
				}
			}
			return true
		})
	}
}

// fieldOf is the field that a selector selects; nil for anything else.
func (p checkedPackage) fieldOf(s *ast.SelectorExpr) *types.Var {
	if sel := p.info.Selections[s]; sel != nil && sel.Kind() == types.FieldVal {
		return sel.Obj().(*types.Var).Origin()
	}
	return nil
}

// hand notes that a value is a field as it is, handed on to another field.
func (p checkedPackage) hand(value ast.Expr, to *types.Var, skip map[*ast.SelectorExpr]bool, r reads) {
	s, ok := value.(*ast.SelectorExpr)
	// What is handed to another module's field is used there.
	if !ok || to == nil || to.Pkg() == nil || !under(to.Pkg().Path(), module) {
		return
	}
	if from := p.fieldOf(s); from != nil {
		skip[s] = true
		r.flow[from] = append(r.flow[from], to)
	}
}

// markPath marks a selected field, and the embedded ones on the way to it.
func markPath(s *types.Selection, read map[*types.Var]bool) {
	t := s.Recv()
	for _, i := range s.Index() {
		if ptr, ok := t.Underlying().(*types.Pointer); ok {
			t = ptr.Elem()
		}
		st, ok := t.Underlying().(*types.Struct)
		if !ok {
			return
		}
		read[st.Field(i)] = true
		read[st.Field(i).Origin()] = true
		t = st.Field(i).Type()
	}
}

type field struct {
	name string // package.Type.Field
	v    *types.Var
}

// settable lists what a file or a request can set: fields with a yaml tag, and fields with a json tag of structs that are
// decoded with unknown fields refused.
func settable(p checkedPackage) (out []field) {
	for ident, obj := range p.info.Defs {
		tn, ok := obj.(*types.TypeName)
		if !ok {
			continue
		}
		st, ok := tn.Type().Underlying().(*types.Struct)
		if !ok {
			continue
		}
		for i := range st.NumFields() {
			key := reflect.StructTag(st.Tag(i)).Get("yaml")
			if key != "" && key != "-" && !strings.Contains(key, "inline") {
				out = append(out, field{p.path + "." + ident.Name + "." + st.Field(i).Name(), st.Field(i)})
			}
		}
	}
	for _, st := range p.decoded() {
		for i := range st.NumFields() {
			if key := reflect.StructTag(st.Tag(i)).Get("json"); key != "" && key != "-" {
				out = append(out, field{p.path + ": " + key, st.Field(i)})
			}
		}
	}
	return out
}

// leaving marks fields with a json tag: they leave the process in answers and records. Those of the control log are read
// again by its fold, and count only where code reads them; embedded structs count with their own fields.
func (p checkedPackage) leaving(out map[*types.Var]bool) {
	if p.path == "schemas/control" {
		return
	}
	for _, obj := range p.info.Defs {
		if tn, ok := obj.(*types.TypeName); ok {
			if st, ok := tn.Type().Underlying().(*types.Struct); ok {
				for i := range st.NumFields() {
					if st.Tag(i) != "" && strings.Contains(st.Tag(i), "json:") {
						out[st.Field(i)] = true
					}
				}
			}
		}
	}
}

// decoded are the structs that requests are decoded into: what is given to a call whose name says that it decodes
// strictly, or that follows DisallowUnknownFields in the same function.
func (p checkedPackage) decoded() (out []*types.Struct) {
	for _, file := range p.files {
		for _, decl := range file.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			var names []string
			var args []ast.Expr
			ast.Inspect(fn.Body, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				if s, ok := call.Fun.(*ast.SelectorExpr); ok {
					names = append(names, s.Sel.Name)
					if (s.Sel.Name == "Decode" || s.Sel.Name == "DecodeJSON") && len(call.Args) > 0 {
						args = append(args, call.Args[len(call.Args)-1])
					}
				}
				return true
			})
			if !slices.Contains(names, "DisallowUnknownFields") && !slices.Contains(names, "DecodeJSON") {
				continue
			}
			for _, a := range args {
				t := p.info.Types[a].Type
				if ptr, ok := t.(*types.Pointer); ok {
					t = ptr.Elem()
				}
				if st, ok := t.Underlying().(*types.Struct); ok {
					out = append(out, st)
				}
			}
		}
	}
	return out
}
