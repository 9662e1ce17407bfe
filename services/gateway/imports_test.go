package gateway_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestNoStubsOfServices holds the gateway to being generic: of the generated
// packages the product may only import the one for the access option, which is
// no service. Tests may import what they like.
func TestNoStubsOfServices(t *testing.T) {
	const generated, allowed = "github.com/marquee-ads/marquee/proto/gen/", "github.com/marquee-ads/marquee/proto/gen/marquee/access/v1"
	files := 0
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		files++
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, i := range file.Imports {
			name, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			if strings.HasPrefix(name, generated) && name != allowed {
				t.Errorf("%s imports %s: the gateway learns services by reflection", path, name)
			}
		}
		return nil
	})
	require.NoError(t, err)
	require.Greater(t, files, 10, "the walk has missed the product")
}
