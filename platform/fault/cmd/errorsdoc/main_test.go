package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/fault"
)

const root = "../../../.."

func TestDocumentIsUpToDate(t *testing.T) {
	got, err := os.ReadFile(filepath.Join(root, "docs/errors.md"))
	require.NoError(t, err)
	require.Equal(t, render(), string(got), "docs/errors.md is out of date: run make generate")
	for _, c := range fault.Codes() {
		require.Contains(t, string(got), "| "+c.String()+" |")
	}
}

// The page names exactly the reasons that the platform and the gateway make.
func TestReasons(t *testing.T) {
	made := map[string]string{} // where, by reason
	for _, folder := range []string{"platform", "services/gateway"} {
		require.NoError(t, filepath.WalkDir(filepath.Join(root, folder), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.IsDir() {
				return err
			}
			return reasonsOf(path, made)
		}))
	}
	for _, reason := range []string{"NOT_ACCEPTABLE", "MESH_NO_IDENTITY", "UTF8_INVALID", "RESPONSE_MALFORMED", "INTERNAL"} {
		require.Contains(t, made, reason, "the search misses a way to make an error")
	}

	rows := regexp.MustCompile("(?m)^\\| `([A-Z0-9_]+)` \\| ([A-Z_]+) \\|").FindAllStringSubmatch(page, -1)
	var codes []string
	for _, c := range fault.Codes() {
		codes = append(codes, c.String())
	}
	named := map[string]bool{}
	for _, row := range rows {
		require.Contains(t, made, row[1], "errors.md names a reason that nothing makes")
		require.Contains(t, codes, row[2])
		require.False(t, named[row[1]], "errors.md names %s twice", row[1])
		named[row[1]] = true
	}
	for reason, where := range made {
		require.True(t, named[reason], "page.md lacks the reason %s, which %s makes", reason, where)
	}
}

var reasonPattern = regexp.MustCompile(`^[A-Z][A-Z0-9_]+$`)

// reasonsOf adds the reasons that the package in a folder makes errors with: as
// literals or constants, passed to fault.New, refuse or fail, or set in a
// composite literal.
func reasonsOf(folder string, made map[string]string) error {
	paths, err := filepath.Glob(filepath.Join(folder, "*.go"))
	if err != nil {
		return err
	}
	constants := map[string]string{}
	var files []*ast.File
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		files = append(files, file)
		ast.Inspect(file, func(node ast.Node) bool {
			if spec, ok := node.(*ast.ValueSpec); ok && len(spec.Names) == len(spec.Values) {
				for i, name := range spec.Names {
					if text, ok := literal(spec.Values[i]); ok {
						constants[name.Name] = text
					}
				}
			}
			return true
		})
	}
	add := func(expression ast.Expr) {
		text, ok := literal(expression)
		if name, isName := expression.(*ast.Ident); isName {
			text, ok = constants[name.Name]
		}
		if ok && reasonPattern.MatchString(text) {
			made[text] = folder
		}
	}
	for _, file := range files {
		ast.Inspect(file, func(node ast.Node) bool {
			switch node := node.(type) {
			case *ast.CallExpr:
				switch called(node) {
				case "fault.New", "refuse", "fail":
					for _, argument := range node.Args {
						add(argument)
					}
				}
			case *ast.KeyValueExpr:
				if key, ok := node.Key.(*ast.Ident); ok && key.Name == "Reason" {
					add(node.Value)
				}
			}
			return true
		})
	}
	return nil
}

func literal(expression ast.Expr) (string, bool) {
	basic, ok := expression.(*ast.BasicLit)
	if !ok || basic.Kind != token.STRING {
		return "", false
	}
	text, err := strconv.Unquote(basic.Value)
	return text, err == nil
}

// called is what a call calls, as it is written: f or package.f.
func called(call *ast.CallExpr) string {
	switch function := call.Fun.(type) {
	case *ast.Ident:
		return function.Name
	case *ast.SelectorExpr:
		if of, ok := function.X.(*ast.Ident); ok {
			return of.Name + "." + function.Sel.Name
		}
	}
	return ""
}
