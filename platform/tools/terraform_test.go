package tools

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// terraformCheckout is a checkout whose providers are a few lines each.
func terraformCheckout(t *testing.T) string {
	t.Helper()
	root := checkout(t)
	for _, p := range providers() {
		dir := filepath.Join(root, "tools", p.program)
		write(t, filepath.Join(dir, "go.mod"), "module example.com/tools\n\ngo 1.26\n\ntool example.com/"+p.program+"\n\nrequire example.com/"+p.program+" v1.2.3\n\nreplace example.com/"+p.program+" => ./src\n")
		write(t, filepath.Join(dir, "go.sum"), "")
		write(t, filepath.Join(dir, "src/go.mod"), "module example.com/"+p.program+"\n\ngo 1.26\n")
		write(t, filepath.Join(dir, "src/main.go"), "package main\n\nfunc main() {}\n")
	}
	t.Setenv("MARQUEE_TERRAFORM", "")
	return root
}

// fakeTerraform is a program that knows its version and its registry.
func fakeTerraform(t *testing.T, name, version, host string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), name)
	write(t, program, "#!/bin/sh\ncase $1 in\nversion) echo 'Program v"+version+"' ;;\nproviders) sed -n 's|.*source = \"\\(.*\\)\"|provider["+host+"/\\1]|p' main.tf ;;\nesac\n")
	t.Setenv("PATH", filepath.Dir(program)+":"+os.Getenv("PATH"))
	return program
}

func TestEnsureTerraform(t *testing.T) {
	t.Run("OnPathWithProvidersOfThisCheckout", func(t *testing.T) {
		root := terraformCheckout(t)
		program := fakeTerraform(t, "terraform", "1.11.4", "registry.example.com")
		got, err := EnsureTerraform(t.Context(), "", nil)
		require.NoError(t, err)
		require.Equal(t, Terraform{Program: program, Name: "terraform", Version: "v1.11.4", ConfigFile: filepath.Join(root, ".marquee/tools/terraform.tfrc")}, got)

		mirror := filepath.Join(root, ".marquee/tools/providers")
		config, err := os.ReadFile(got.ConfigFile)
		require.NoError(t, err)
		require.Contains(t, string(config), mirror)
		for _, p := range providers() {
			link := filepath.Join(mirror, "registry.example.com", p.source, "1.2.3", runtime.GOOS+"_"+runtime.GOARCH, p.program+"_v1.2.3")
			to, err := os.Readlink(link)
			require.NoError(t, err)
			require.Equal(t, filepath.Join(root, ".marquee/tools", p.program), to)
			require.FileExists(t, to)
		}
	})
	t.Run("AnotherRegistryBesideTheFirst", func(t *testing.T) {
		root := terraformCheckout(t)
		fakeTerraform(t, "terraform", "1.11.4", "registry.example.com")
		fakeTerraform(t, "tofu", "1.10.6", "registry.example.org")
		_, err := EnsureTerraform(t.Context(), "terraform", nil)
		require.NoError(t, err)
		got, err := EnsureTerraform(t.Context(), "tofu", nil)
		require.NoError(t, err)
		require.Equal(t, "tofu", got.Name)
		for _, host := range []string{"registry.example.com", "registry.example.org"} {
			require.DirExists(t, filepath.Join(root, ".marquee/tools/providers", host, "hetznercloud/hcloud"))
		}
	})
	t.Run("PassesOverOneThatIsTooOld", func(t *testing.T) {
		terraformCheckout(t)
		tofu := fakeTerraform(t, "tofu", "1.9.0", "registry.example.org")
		fakeTerraform(t, "terraform", "1.5.7", "registry.example.com")
		got, err := EnsureTerraform(t.Context(), "", nil)
		require.NoError(t, err)
		require.Equal(t, tofu, got.Program)
	})
	t.Run("NamedByTheEnvironment", func(t *testing.T) {
		terraformCheckout(t)
		fakeTerraform(t, "terraform", "1.11.4", "registry.example.com")
		mine := fakeTerraform(t, "mine", "1.9.1", "registry.example.org")
		t.Setenv("MARQUEE_TERRAFORM", mine)
		got, err := Ensure(t.Context(), "terraform", nil)
		require.NoError(t, err)
		require.Equal(t, mine, got)
	})
	t.Run("ErrNamedOneIsTooOld", func(t *testing.T) {
		terraformCheckout(t)
		old := fakeTerraform(t, "terraform", "1.5.7", "registry.example.com")
		_, err := EnsureTerraform(t.Context(), "terraform", nil)
		require.ErrorIs(t, err, ErrMissing)
		require.ErrorContains(t, err, old+" is v1.5.7")
		require.ErrorContains(t, err, "MARQUEE_TERRAFORM=tofu")
	})
	t.Run("ErrNamedOneIsNotThere", func(t *testing.T) {
		terraformCheckout(t)
		_, err := EnsureTerraform(t.Context(), "terraform", nil)
		require.ErrorIs(t, err, ErrMissing)
		require.ErrorContains(t, err, "terraform is not on PATH")
	})
	t.Run("ErrUnknownName", func(t *testing.T) {
		terraformCheckout(t)
		_, err := EnsureTerraform(t.Context(), "pulumi", nil)
		require.ErrorContains(t, err, `"pulumi"`)
	})
	t.Run("ErrDoesNotSayItsRegistry", func(t *testing.T) {
		terraformCheckout(t)
		program := onPath(t, "terraform", "v1.11.4")
		_, err := EnsureTerraform(t.Context(), "", nil)
		require.ErrorContains(t, err, "ask "+program+" for its registry")
	})
	t.Run("ErrEndedBefore", func(t *testing.T) {
		terraformCheckout(t)
		fakeTerraform(t, "terraform", "1.11.4", "registry.example.com")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := EnsureTerraform(ctx, "", nil)
		require.ErrorIs(t, err, context.Canceled)
	})
}

func TestTerraformEnviron(t *testing.T) {
	t.Setenv("TF_CLI_CONFIG_FILE", "/somebody's")
	t.Setenv("KEPT", "yes")
	env := Terraform{ConfigFile: "/ours"}.Environ()
	var config []string
	for _, kv := range env {
		if strings.HasPrefix(kv, "TF_CLI_CONFIG_FILE=") {
			config = append(config, kv)
		}
	}
	// One alone: which of two counts depends on who starts the program.
	require.Equal(t, []string{"TF_CLI_CONFIG_FILE=/ours"}, config)
	require.Contains(t, env, "KEPT=yes")
}
