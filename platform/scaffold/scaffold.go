// Package scaffold makes a new service that works as it is: its API, its code
// with tests, its tables, its job, and its edges in the mesh.
package scaffold

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"go/format"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"github.com/marquee-ads/marquee/platform/files"
)

//go:embed templates
var templates embed.FS

// Service is a service to make.
type Service struct {
	// Name is the service's: its job, its folder, its Consul service, its Go and
	// proto package, its database and its role there.
	Name string
	// Resource is what the service keeps, in the singular; Name when empty.
	Resource string
}

// Changes are the paths that something made, changed or removed, relative to the
// checkout and sorted.
type Changes struct {
	Made    []string `json:"made"`
	Changed []string `json:"changed"`
	Removed []string `json:"removed"`
}

// ulidLength is how many characters a ULID has.
const ulidLength = 26

// The words that templates are filled with.
type words struct {
	Name     string // venue
	Title    string // Venue, as in VenueService
	Resource string // venue
	Type     string // Venue
	Upper    string // VENUE
	Plural   string // venues
	Types    string // Venues
	A        string // a, or an
	IDLength int    // characters of an id
}

func (s Service) words() words {
	many := plural(s.Resource)
	article := "a"
	if strings.ContainsAny(s.Resource[:1], "aeiou") {
		article = "an"
	}
	return words{
		Name: s.Name, Title: title(s.Name),
		Resource: s.Resource, Type: title(s.Resource), Upper: strings.ToUpper(s.Resource),
		Plural: many, Types: title(many), A: article,
		IDLength: len(s.Resource) + len("_") + ulidLength,
	}
}

func title(word string) string { return strings.ToUpper(word[:1]) + word[1:] }

// plural follows the rules of English; its exceptions are edited by hand.
func plural(word string) string {
	for _, end := range []string{"s", "x", "z", "ch", "sh"} {
		if strings.HasSuffix(word, end) {
			return word + "es"
		}
	}
	if before, ok := strings.CutSuffix(word, "y"); ok && before != "" && !strings.ContainsAny(before[len(before)-1:], "aeiou") {
		return before + "ies"
	}
	return word + "s"
}

// layout says which template becomes which file. Paths are templates, too.
var layout = map[string]string{
	"proto.tmpl":                     "proto/marquee/[[.Name]]/v1/[[.Name]].proto",
	"domain.go.tmpl":                 "services/[[.Name]]/[[.Name]].go",
	"service.go.tmpl":                "services/[[.Name]]/service.go",
	"service_test.go.tmpl":           "services/[[.Name]]/service_test.go",
	"sqlc.yaml.tmpl":                 "services/[[.Name]]/sqlc.yaml",
	"postgres/postgres.go.tmpl":      "services/[[.Name]]/postgres/postgres.go",
	"postgres/postgres_test.go.tmpl": "services/[[.Name]]/postgres/postgres_test.go",
	"postgres/postgrestest.go.tmpl":  "services/[[.Name]]/postgres/postgrestest/postgrestest.go",
	"postgres/migration.sql.tmpl":    "services/[[.Name]]/postgres/migrations/00001_[[.Plural]].sql",
	"postgres/doc.go.tmpl":           "services/[[.Name]]/postgres/query/doc.go",
	"postgres/query.sql.tmpl":        "services/[[.Name]]/postgres/query/[[.Plural]].sql",
	"server/server.go.tmpl":          "services/[[.Name]]/server/server.go",
	"cmd/main.go.tmpl":               "services/[[.Name]]/cmd/[[.Name]]d/main.go",
	"cmd/main_test.go.tmpl":          "services/[[.Name]]/cmd/[[.Name]]d/main_test.go",
	"job.hcl.tmpl":                   "nomad-jobs/[[.Name]].nomad.hcl",
}

// render fills all templates: contents by path.
func (s Service) render() (map[string][]byte, error) {
	w := s.words()
	files := make(map[string][]byte, len(layout))
	for name, where := range layout {
		text, err := templates.ReadFile(path.Join("templates", name))
		if err != nil {
			return nil, fmt.Errorf("rendering %s: %w", name, err)
		}
		content, err := fill(name, string(text), w)
		if err != nil {
			return nil, err
		}
		if strings.HasSuffix(name, ".go.tmpl") {
			if content, err = format.Source(content); err != nil {
				return nil, fmt.Errorf("rendering %s: %w", name, err)
			}
		}
		file, err := fill(name, where, w)
		if err != nil {
			return nil, err
		}
		files[string(file)] = content
	}
	return files, nil
}

// fill uses [[ ]], which neither Go nor HCL nor Nomad's templates do.
func fill(name, text string, w words) ([]byte, error) {
	parsed, err := template.New(name).Delims("[[", "]]").Parse(text)
	if err != nil {
		return nil, fmt.Errorf("rendering %s: %w", name, err)
	}
	var out bytes.Buffer
	if err := parsed.Execute(&out, w); err != nil {
		return nil, fmt.Errorf("rendering %s: %w", name, err)
	}
	return out.Bytes(), nil
}

// Create makes the service in a checkout. Whatever of it is there already is an
// error that names it. An error leaves the checkout as it was.
func Create(root string, s Service) (Changes, error) {
	s, err := s.checked()
	if err != nil {
		return Changes{}, err
	}
	if err := s.free(root); err != nil {
		return Changes{}, err
	}
	made, err := s.render()
	if err != nil {
		return Changes{}, err
	}
	if err := s.modules(root, made); err != nil {
		return Changes{}, err
	}
	changed, err := s.join(root)
	if err != nil {
		return Changes{}, err
	}
	if err := write(root, made, changed); err != nil {
		return Changes{}, err
	}
	return Changes{Made: sorted(made), Changed: sorted(changed), Removed: []string{}}, nil
}

// folders hold what belongs to a service alone. Generated code is in the last.
func (s Service) folders() []string {
	return []string{"services/" + s.Name, "proto/marquee/" + s.Name, "proto/gen/marquee/" + s.Name}
}

// write makes and replaces files; when one cannot be written it undoes the rest.
func write(root string, made, changed map[string][]byte) (err error) {
	var undo []func() error
	defer func() {
		if err == nil {
			return
		}
		for _, back := range slices.Backward(undo) {
			err = errors.Join(err, back())
		}
	}()
	for _, name := range sorted(made) {
		file := filepath.Join(root, filepath.FromSlash(name))
		folders, err := makeFolders(filepath.Dir(file))
		undo = append(undo, func() error { return removeFolders(folders) })
		if err != nil {
			return fmt.Errorf("making %s: %w", name, err)
		}
		undo = append(undo, func() error { return gone(os.Remove(file)) })
		if err := os.WriteFile(file, made[name], 0o644); err != nil { //nolint:gosec // source code
			return fmt.Errorf("making %s: %w", name, err)
		}
	}
	for _, name := range sorted(changed) {
		file := filepath.Join(root, filepath.FromSlash(name))
		before, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("changing %s: %w", name, err)
		}
		undo = append(undo, func() error { return replace(file, before) })
		if err := replace(file, changed[name]); err != nil {
			return fmt.Errorf("changing %s: %w", name, err)
		}
	}
	return nil
}

// replace changes a file's contents at one moment.
func replace(file string, content []byte) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	return files.Replace(file, content, info.Mode().Perm())
}

// makeFolders makes a folder and those above it, and returns the new ones, the
// outermost first.
func makeFolders(folder string) (made []string, err error) {
	var missing []string
	for at := folder; ; at = filepath.Dir(at) {
		_, err := os.Stat(at)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		missing = append(missing, at)
	}
	for _, at := range slices.Backward(missing) {
		if err := os.Mkdir(at, 0o755); err != nil { //nolint:gosec // source code
			return made, err
		}
		made = append(made, at)
	}
	return made, nil
}

func removeFolders(folders []string) error {
	var problems []error
	for _, at := range slices.Backward(folders) {
		problems = append(problems, gone(os.Remove(at)))
	}
	return errors.Join(problems...)
}

// gone is the error of a removal, for which what is not there is as good.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func sorted(files map[string][]byte) []string {
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
