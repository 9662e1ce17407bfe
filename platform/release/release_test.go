package release

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/tools"
)

// checkout is a small one with two services and a program of the platform.
func checkout(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	t.Setenv("MARQUEE_ROOT", root)
	write(t, filepath.Join(root, "go.work"), "go 1.26\n\nuse (\n\t./platform\n\t./services/account\n)\n")
	write(t, filepath.Join(root, "platform/go.mod"), "module example.com/platform\n\ngo 1.26\n")
	write(t, filepath.Join(root, "services/account/go.mod"), "module example.com/account\n\ngo 1.26\n")
	program(t, root, "services/account/cmd/accountd", "account")
	program(t, root, "platform/cmd/postgresd", "postgres")
	program(t, root, "platform/cmd/marquee", "marquee")
	write(t, filepath.Join(root, "platform/cmd/generator/main.go"), "package main\n\nfunc main() {}\n")
	return root
}

func program(t *testing.T, root, dir, prints string) {
	t.Helper()
	write(t, filepath.Join(root, dir, "main.go"), "package main\n\nfunc main() { println(\""+prints+"\") }\n")
}

func write(t *testing.T, path, text string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
}

func TestBuild(t *testing.T) {
	root := checkout(t)
	// Settings that would change what comes out.
	t.Setenv("GOFLAGS", "-tags=other")
	t.Setenv("GOOS", "plan9")

	first, err := Build(t.Context())
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"accountd", "postgresd", "marquee"}, slices.Collect(keys(first)))
	account := first["accountd"]
	require.True(t, account.New)
	require.Equal(t, filepath.Join(root, ".marquee/releases", account.Version, "accountd"), account.Path)
	require.Regexp(t, `^[0-9a-f]{12}$`, account.Version)
	require.Regexp(t, "^"+account.Version+`[0-9a-f]{52}$`, account.SHA256)
	require.Equal(t, "services/account/cmd/accountd", account.Package)
	out, err := exec.Command(account.Path).CombinedOutput()
	require.NoError(t, err)
	require.Equal(t, "account\n", string(out))

	t.Run("SameCodeSamePath", func(t *testing.T) {
		again, err := Build(t.Context(), "accountd")
		require.NoError(t, err)
		require.Len(t, again, 1)
		require.False(t, again["accountd"].New)
		require.Equal(t, account.Path, again["accountd"].Path)
	})
	t.Run("SameCodeElsewhereSameVersion", func(t *testing.T) {
		checkout(t)
		other, err := Build(t.Context(), "accountd")
		require.NoError(t, err)
		require.Equal(t, account.Version, other["accountd"].Version)
	})
	t.Run("OtherCodeOtherPath", func(t *testing.T) {
		t.Setenv("MARQUEE_ROOT", root)
		program(t, root, "services/account/cmd/accountd", "account 2")
		changed, err := Build(t.Context(), "accountd")
		require.NoError(t, err)
		require.NotEqual(t, account.Path, changed["accountd"].Path)
		require.FileExists(t, account.Path)
	})
	t.Run("ErrDoesNotCompile", func(t *testing.T) {
		program(t, root, "services/account/cmd/accountd", `" + undefinedName + "`)
		_, err := Build(t.Context(), "accountd")
		var compile *CompileError
		require.ErrorAs(t, err, &compile)
		require.Equal(t, "services/account/cmd/accountd", compile.Package)
		require.Contains(t, compile.Output, "undefined: undefinedName")
	})
	t.Run("ErrUnknown", func(t *testing.T) {
		_, err := Build(t.Context(), "orderd")
		require.ErrorContains(t, err, `no program is called "orderd": there are accountd, marquee, postgresd`)
	})
	t.Run("ErrEnded", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := Build(ctx, "postgresd")
		require.ErrorIs(t, err, context.Canceled)
	})
	t.Run("NothingHalf", func(t *testing.T) {
		left, err := filepath.Glob(filepath.Join(root, ".marquee/releases/.building-*"))
		require.NoError(t, err)
		require.Empty(t, left)
	})
}

func keys(m map[string]Binary) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// What tools/ pins and jobs run is a release as well.
func TestServer(t *testing.T) {
	root, err := tools.Root()
	require.NoError(t, err)
	t.Setenv("MARQUEE_ROOT", root)
	all, err := Packages(root)
	require.NoError(t, err)
	require.Equal(t, filepath.Join("tools", "nats-server"), all["natsd"])
	built, err := Build(t.Context(), "natsd")
	require.NoError(t, err)
	require.Equal(t, "natsd", filepath.Base(built["natsd"].Path))
	out, err := exec.Command(built["natsd"].Path, "--version").CombinedOutput()
	require.NoError(t, err)
	require.Contains(t, string(out), "nats-server")
	again, err := Build(t.Context(), "natsd")
	require.NoError(t, err)
	require.False(t, again["natsd"].New)
	require.Equal(t, built["natsd"].Path, again["natsd"].Path)
}

func TestPackages(t *testing.T) {
	t.Run("ErrTwice", func(t *testing.T) {
		root := checkout(t)
		program(t, root, "services/order/cmd/accountd", "x")
		_, err := Packages(root)
		require.ErrorContains(t, err, "two programs are called accountd")
	})
	t.Run("ErrNone", func(t *testing.T) {
		_, err := Packages(t.TempDir())
		require.ErrorContains(t, err, "no programs")
	})
}

func TestPrune(t *testing.T) {
	root := t.TempDir()
	t.Setenv("MARQUEE_ROOT", root)
	write(t, filepath.Join(root, "go.work"), "go 1.26\n")
	now := time.Now()
	var paths []string
	for i, version := range []string{"a00000000000", "b00000000000", "c00000000000", "d00000000000", "e00000000000", "f00000000000"} {
		path := filepath.Join(Folder(root), version, "accountd")
		write(t, path, version)
		when := now.Add(time.Duration(i) * time.Minute)
		require.NoError(t, os.Chtimes(path, when, when))
		paths = append(paths, path)
	}
	other := filepath.Join(Folder(root), "a00000000000", "gatewayd")
	write(t, other, "the only one of its name")
	young, old := filepath.Join(Folder(root), ".building-1"), filepath.Join(Folder(root), ".building-2")
	require.NoError(t, os.Mkdir(young, 0o755))
	require.NoError(t, os.Mkdir(old, 0o755))
	require.NoError(t, os.Chtimes(old, now.Add(-2*time.Hour), now.Add(-2*time.Hour)))

	removed, err := Prune(func(path string) bool { return path == paths[1] })
	require.NoError(t, err)
	require.ElementsMatch(t, []string{paths[0], paths[2]}, removed)
	require.FileExists(t, paths[1], "a job uses it")
	require.FileExists(t, paths[3])
	require.FileExists(t, other)
	require.NoDirExists(t, filepath.Dir(paths[2]))
	require.DirExists(t, young)
	require.NoDirExists(t, old)
}
