package scaffold

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/marquee-ads/marquee/platform/edges"
	"github.com/marquee-ads/marquee/platform/release"
)

// maxName keeps everything that is made of a name within its bounds; the
// tightest are names of tables' constraints, 63 bytes.
const maxName = 30

var namePattern = regexp.MustCompile(`^[a-z][a-z0-9]+$`)

// reserved are words that the places a name stands in give a meaning to.
var reserved = map[string]string{
	"marquee": "a proto package of this name hides all the others", "google": "a proto package of this name hides google.protobuf",
	"buf": "a proto package of this name hides buf.validate", "third": "it is taken by imported protos", "gen": "it is taken by generated code",
	"internal": "Go lets nobody import a folder of this name", "vendor": "Go gives a folder of this name a meaning", "testdata": "Go ignores a folder of this name",
	"public": "Postgres gives a role of this name a meaning", "none": "Postgres gives a role of this name a meaning", "template0": "Postgres has a database of this name", "template1": "Postgres has a database of this name",
	"reference": "its plural is a word of SQL",
}

// protoWords are those that a .proto gives a meaning to.
var protoWords = strings.Fields(`bool bytes double edition enum export extend extensions fixed32 fixed64 float group import int32 int64
	local max message oneof option optional package public repeated required reserved returns rpc service sfixed32 sfixed64 sint32 sint64
	stream string syntax to uint32 uint64 weak`)

// Check says what is wrong with a name of a service or of its resource, which is
// used in the same places.
func Check(name string) error {
	wrong := func(format string, args ...any) error {
		return fmt.Errorf("%q cannot be the name: %s", name, fmt.Sprintf(format, args...))
	}
	switch {
	case len(name) > maxName:
		return wrong("it has %d characters; use at most %d", len(name), maxName)
	case !namePattern.MatchString(name):
		return wrong("use one word of two or more lower-case letters and digits that starts with a letter: it becomes a Go package, a proto package, a job and a role in Postgres")
	case token.IsKeyword(name):
		return wrong("it is a keyword of Go")
	case types.Universe.Lookup(name) != nil:
		return wrong("Go has something of this name built in")
	case reserved[name] != "":
		return wrong("%s", reserved[name])
	}
	for _, word := range protoWords {
		if name == word {
			return wrong("it is a word of the protobuf language")
		}
	}
	used, err := usedWords()
	if err != nil {
		return err
	}
	if used[name] || used[title(name)] {
		return wrong("the code of a service uses this word for something else")
	}
	return nil
}

// usedWords are the identifiers of the code that is made, other than those that
// come from the names.
func usedWords() (map[string]bool, error) {
	const name, resource = "xname", "xresource"
	files, err := Service{Name: name, Resource: resource}.render()
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for path, content := range files {
		if !strings.HasSuffix(path, ".go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), path, content, parser.SkipObjectResolution)
		if err != nil {
			return nil, fmt.Errorf("reading the templates: %w", err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			if of, ok := n.(*ast.SelectorExpr); ok {
				// What is selected is another package's, or a field.
				of.Sel = ast.NewIdent("_")
			}
			if id, ok := n.(*ast.Ident); ok && !strings.Contains(strings.ToLower(id.Name), name) && !strings.Contains(strings.ToLower(id.Name), resource) {
				used[id.Name] = true
			}
			return true
		})
	}
	return used, nil
}

// checked returns the service with what may be left out filled in.
func (s Service) checked() (Service, error) {
	if err := Check(s.Name); err != nil {
		return s, err
	}
	if s.Resource == "" || s.Resource == s.Name {
		s.Resource = s.Name
		return s, nil
	}
	if err := Check(s.Resource); err != nil {
		return s, fmt.Errorf("the resource: %w", err)
	}
	return s, nil
}

// free says what there is already of the service, or of others that stands in
// its way; all of it.
func (s Service) free(root string) error {
	var taken []string
	for _, where := range append(s.folders(), s.jobFile()) {
		switch _, err := os.Stat(filepath.Join(root, filepath.FromSlash(where))); {
		case err == nil:
			taken = append(taken, where+" exists")
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("looking for %s: %w", where, err)
		}
	}
	programs, err := release.Packages(root)
	if err != nil {
		return fmt.Errorf("looking for programs: %w", err)
	}
	if at := programs[s.Name+"d"]; at != "" && at != "services/"+s.Name+"/cmd/"+s.Name+"d" {
		taken = append(taken, fmt.Sprintf("%s is a program called %sd", at, s.Name))
	}
	drawn, err := edges.Load(filepath.Join(root, edgesFile))
	if err != nil {
		return err
	}
	for _, name := range drawn.Identities() {
		if name == s.Name || name == s.database() {
			taken = append(taken, fmt.Sprintf("%s names %s", edgesFile, name))
		}
	}
	route, err := s.routeOwner(root)
	if err != nil {
		return err
	}
	if route != "" {
		taken = append(taken, fmt.Sprintf("%s has a route at /v1/%s (another --resource has another)", route, plural(s.Resource)))
	}
	if len(taken) > 0 {
		return fmt.Errorf("there is something called %s already; nothing was changed. Choose another name, or take out what was made before with --remove:\n  %s", s.Name, strings.Join(taken, "\n  "))
	}
	return nil
}

// routeOwner is the .proto of another service that declares the path of our
// resource, or empty.
func (s Service) routeOwner(root string) (string, error) {
	route := regexp.MustCompile(`"/v1/` + plural(s.Resource) + `["/:]`)
	protos, err := filepath.Glob(filepath.Join(root, "proto", "marquee", "*", "*", "*.proto"))
	if err != nil {
		return "", err
	}
	for _, file := range protos {
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return "", err
		}
		if strings.HasPrefix(filepath.ToSlash(rel), "proto/marquee/"+s.Name+"/") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("looking for routes: %w", err)
		}
		if route.Match(text) {
			return filepath.ToSlash(rel), nil
		}
	}
	return "", nil
}
