package images_test

import (
	"archive/tar"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/images"
	"github.com/marquee-ads/marquee/platform/release"
)

// postgresd stands for all programs: it is built as they are, and quickly.
func program(t *testing.T) release.Binary {
	t.Helper()
	built, err := release.Build(t.Context(), "postgresd")
	require.NoError(t, err)
	return built["postgresd"]
}

func TestMake(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "images")
	binary := program(t)
	made, err := images.Make(binary, "amd64", folder)
	require.NoError(t, err)
	require.Equal(t, filepath.Join(folder, "postgresd-"+binary.Version+".tar"), made.File)

	// What a container engine would load.
	loaded, err := tarball.ImageFromPath(made.File, nil)
	require.NoError(t, err)
	config, err := loaded.ConfigFile()
	require.NoError(t, err)
	require.Equal(t, "linux/amd64", config.Platform().String())
	require.Equal(t, "65534:65534", config.Config.User, "never root")
	require.Equal(t, []string{"/postgresd"}, config.Config.Entrypoint)
	require.Empty(t, config.Config.Env)
	require.Empty(t, config.Config.Volumes)
	require.Equal(t, binary.Version, config.Config.Labels["org.opencontainers.image.version"])

	t.Run("Files", func(t *testing.T) {
		files := contents(t, loaded)
		require.Len(t, files, 4)
		for path, f := range files {
			require.Zero(t, f.header.Mode&0o7000, "%s: no file changes who runs it", path)
			require.Zero(t, f.header.Mode&0o022, "%s: nobody but its owner may write", path)
			if f.header.Typeflag == tar.TypeReg {
				require.Zero(t, f.header.Mode&0o200, "%s: it is read only", path)
			}
		}
		sum := sha256.Sum256(files["postgresd"].text)
		require.Equal(t, binary.SHA256, hex.EncodeToString(sum[:]))
		require.Contains(t, string(files["etc/passwd"].text), "nobody:x:65534:65534:")

		// From scratch there is no loader and no library.
		path := filepath.Join(t.TempDir(), "postgresd")
		require.NoError(t, os.WriteFile(path, files["postgresd"].text, 0o600))
		f, err := elf.Open(path)
		require.NoError(t, err)
		defer f.Close()
		for _, p := range f.Progs {
			require.NotEqual(t, elf.PT_INTERP, p.Type, "the program must be static")
		}
	})

	t.Run("Reproducible", func(t *testing.T) {
		elsewhere := filepath.Join(t.TempDir(), "x")
		again, err := images.Make(binary, "amd64", elsewhere)
		require.NoError(t, err)
		require.Equal(t, made.Digest, again.Digest)
		first, err := os.ReadFile(made.File)
		require.NoError(t, err)
		second, err := os.ReadFile(again.File)
		require.NoError(t, err)
		require.Equal(t, sha256.Sum256(first), sha256.Sum256(second))

		other, err := images.Make(binary, "arm64", elsewhere)
		require.NoError(t, err)
		require.NotEqual(t, made.Digest, other.Digest)
	})

	t.Run("SecondTimeWritesNothing", func(t *testing.T) {
		before, err := os.Stat(made.File)
		require.NoError(t, err)
		_, err = images.Make(binary, "amd64", folder)
		require.NoError(t, err)
		after, err := os.Stat(made.File)
		require.NoError(t, err)
		require.True(t, os.SameFile(before, after))
	})

	t.Run("HalfWrittenIsWrittenAnew", func(t *testing.T) {
		require.NoError(t, os.Truncate(made.File, 1000))
		_, err := images.Make(binary, "amd64", folder)
		require.NoError(t, err)
		_, err = tarball.ImageFromPath(made.File, nil)
		require.NoError(t, err)
	})

	t.Run("NoProgram", func(t *testing.T) {
		_, err := images.Make(release.Binary{Name: "gone", Path: filepath.Join(t.TempDir(), "gone")}, "amd64", folder)
		require.ErrorIs(t, err, os.ErrNotExist)
	})
}

func TestPush(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	binary := program(t)
	made, err := images.Make(binary, "amd64", t.TempDir())
	require.NoError(t, err)

	repository := strings.TrimPrefix(server.URL, "http://") + "/team/marquee"
	pushed, err := made.Push(t.Context(), repository)
	require.NoError(t, err)
	require.Equal(t, repository+"/postgresd:"+binary.Version, pushed)
	reference, err := name.ParseReference(pushed)
	require.NoError(t, err)
	pulled, err := remote.Image(reference)
	require.NoError(t, err)
	digest, err := pulled.Digest()
	require.NoError(t, err)
	require.Equal(t, made.Digest, digest.String())
	_, err = made.Push(t.Context(), repository)
	require.NoError(t, err, "again")

	_, err = made.Push(t.Context(), "No Repository")
	require.ErrorContains(t, err, "want for example registry.example.com/marquee")
	server.Close()
	_, err = made.Push(t.Context(), repository)
	require.ErrorContains(t, err, "pushing "+pushed)
}

type file struct {
	header *tar.Header
	text   []byte
}

func contents(t *testing.T, image v1.Image) map[string]file {
	t.Helper()
	layers, err := image.Layers()
	require.NoError(t, err)
	require.Len(t, layers, 1)
	reader, err := layers[0].Uncompressed()
	require.NoError(t, err)
	defer reader.Close()
	files := map[string]file{}
	for archive := tar.NewReader(reader); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		require.NoError(t, err)
		text, err := io.ReadAll(archive)
		require.NoError(t, err)
		files[header.Name] = file{header, text}
	}
}
