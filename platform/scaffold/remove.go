package scaffold

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// TouchedError says that a service is no longer what Create made of it.
type TouchedError struct {
	Name string
	// What are the files and blocks that differ, or that Create did not make.
	What []string
}

func (e *TouchedError) Error() string {
	return fmt.Sprintf("%s is no longer as it was made; nothing was removed:\n  %s", e.Name, strings.Join(e.What, "\n  "))
}

// Remove takes a service out of a checkout: what Create made, and the code that
// was generated from it. A service on which somebody has worked is a
// *TouchedError, unless force is set. What runs and what it has stored is left
// alone: the next deployment of the platform stops it.
func Remove(root, name string, force bool) (Changes, error) {
	if err := Check(name); err != nil {
		return Changes{}, err
	}
	s := Service{Name: name, Resource: name}
	resource, err := s.resourceOf(root)
	if err != nil {
		return Changes{}, err
	}
	if resource != "" {
		s.Resource = resource
	}
	found, touched, err := s.compare(root)
	if err != nil {
		return Changes{}, err
	}
	changed, foreign, err := s.leave(root)
	if err != nil {
		return Changes{}, err
	}
	touched = append(touched, foreign...)
	switch {
	case len(found) == 0 && len(changed) == 0:
		return Changes{}, fmt.Errorf("there is no service called %s", name)
	case len(touched) > 0 && !force:
		return Changes{}, &TouchedError{Name: name, What: touched}
	}
	// What all share goes first: a checkout with a folder too many still builds.
	if err := write(root, nil, changed); err != nil {
		return Changes{}, err
	}
	var problems []error
	for _, where := range append(s.folders(), s.jobFile()) {
		if err := os.RemoveAll(filepath.Join(root, filepath.FromSlash(where))); err != nil {
			problems = append(problems, fmt.Errorf("removing %s: %w", where, err))
		}
	}
	return Changes{Made: []string{}, Changed: sorted(changed), Removed: found}, errors.Join(problems...)
}

var createMethod = regexp.MustCompile(`(?m)^  rpc Create([A-Z][A-Za-z0-9]*)\(`)

// resourceOf is what the service was made to keep, as its .proto has it; empty
// when that does not tell.
func (s Service) resourceOf(root string) (string, error) {
	text, err := os.ReadFile(filepath.Join(root, "proto", "marquee", s.Name, "v1", s.Name+".proto"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading the service's API: %w", err)
	}
	method := createMethod.FindSubmatch(text)
	if method == nil {
		return "", nil
	}
	return strings.ToLower(string(method[1])), nil
}

// compare lists the service's files, and those of them that are neither
// generated nor as Create makes them.
func (s Service) compare(root string) (found, touched []string, err error) {
	made, err := s.render()
	if err != nil {
		return nil, nil, err
	}
	for _, where := range append(s.folders(), s.jobFile()) {
		err := filepath.WalkDir(filepath.Join(root, filepath.FromSlash(where)), func(file string, entry fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || entry.IsDir() {
				return err
			}
			rel, err := filepath.Rel(root, file)
			if err != nil {
				return err
			}
			name := filepath.ToSlash(rel)
			found = append(found, name)
			content, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			if want, ok := made[name]; ok && bytes.Equal(want, content) || s.derived(name, content) {
				return nil
			}
			touched = append(touched, name)
			return nil
		})
		if err != nil {
			return nil, nil, fmt.Errorf("looking at %s: %w", where, err)
		}
	}
	slices.Sort(found)
	return found, touched, nil
}

var generated = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

// derived says whether a file is made by commands: generated code, and what go
// keeps about modules.
func (s Service) derived(name string, content []byte) bool {
	folder := "services/" + s.Name + "/"
	return name == folder+"go.mod" || name == folder+"go.sum" || strings.HasSuffix(name, ".go") && generated.Match(content)
}
