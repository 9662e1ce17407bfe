// Package images makes container images of the services for clusters whose
// machines run Docker: nothing but the static program, run as nobody. It needs no
// Docker itself.
package images

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/marquee-ads/marquee/platform/release"
)

// nobody is the user and group that the program runs as.
const nobody = "65534:65534"

// DefaultRepository is the first part of images' names until they are pushed.
const DefaultRepository = "marquee"

// Image is a program's image.
type Image struct {
	// Program and Version are the release's; the version is the image's tag.
	Program, Version string
	// Digest is that of the manifest, sha256:…: the same for the same program,
	// wherever and whenever it was made.
	Digest string
	// File is an archive that docker load, podman load and skopeo take.
	File string

	image v1.Image
}

// Folder is where a checkout keeps its images.
func Folder(root string) string { return filepath.Join(root, ".marquee", "images-oci") }

// Make makes the image of a program for Linux on arch, and writes it into folder
// unless it is there. Nothing half-written is left there.
func Make(program release.Binary, arch, folder string) (*Image, error) {
	image, err := assemble(program, arch)
	if err != nil {
		return nil, fmt.Errorf("making the image of %s: %w", program.Name, err)
	}
	digest, err := image.Digest()
	if err != nil {
		return nil, fmt.Errorf("making the image of %s: %w", program.Name, err)
	}
	made := &Image{
		Program: program.Name, Version: program.Version, Digest: digest.String(), image: image,
		File: filepath.Join(folder, program.Name+"-"+program.Version+".tar"),
	}
	if err := made.write(); err != nil {
		return nil, fmt.Errorf("writing the image of %s: %w", program.Name, err)
	}
	return made, nil
}

// Reference is the image's name in a repository: REPOSITORY/PROGRAM:VERSION.
func (i *Image) Reference(repository string) string {
	return repository + "/" + i.Program + ":" + i.Version
}

// CheckRepository says what is wrong with the name of a repository.
func CheckRepository(repository string) error {
	if _, err := name.NewRepository(repository+"/x", name.StrictValidation); err != nil {
		return fmt.Errorf("%q is no repository: want for example registry.example.com/marquee: %w", repository, err)
	}
	return nil
}

// Push sends the image to a registry, with the credentials that docker login
// left, and returns its name there. What the registry has already is not sent.
func (i *Image) Push(ctx context.Context, repository string) (string, error) {
	if err := CheckRepository(repository); err != nil {
		return "", err
	}
	reference, err := name.NewTag(i.Reference(repository), name.StrictValidation)
	if err != nil {
		return "", fmt.Errorf("naming the image: %w", err)
	}
	if err := remote.Write(reference, i.image, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)); err != nil {
		return "", fmt.Errorf("pushing %s: %w", reference, err)
	}
	return reference.String(), nil
}

// assemble is the image in memory.
func assemble(program release.Binary, arch string) (v1.Image, error) {
	files, err := layer(program)
	if err != nil {
		return nil, err
	}
	image := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	image = mutate.ConfigMediaType(image, types.OCIConfigJSON)
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{
		Architecture: arch,
		OS:           "linux",
		Config: v1.Config{
			User:       nobody,
			Entrypoint: []string{"/" + program.Name},
			WorkingDir: "/",
			Labels: map[string]string{
				"org.opencontainers.image.title":   program.Name,
				"org.opencontainers.image.version": program.Version,
			},
		},
	})
	if err != nil {
		return nil, err
	}
	return mutate.Append(image, mutate.Addendum{Layer: files, MediaType: types.OCILayer, History: v1.History{CreatedBy: "marquee images"}})
}

// layer holds the program, and the names of the user that runs it. Nothing in it
// depends on the machine or on the time.
func layer(program release.Binary) (v1.Layer, error) {
	content, err := os.ReadFile(program.Path)
	if err != nil {
		return nil, err
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, f := range []struct {
		name string
		mode int64
		text []byte
	}{
		{"etc/", 0o755, nil},
		{"etc/group", 0o444, []byte("nogroup:x:65534:\n")},
		{"etc/passwd", 0o444, []byte("nobody:x:65534:65534:nobody:/:/\n")},
		{program.Name, 0o555, content},
	} {
		header := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.text)), ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}
		if f.text == nil {
			header.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.text); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(archive.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer))
}

// write puts the archive into its place, whole or not at all, unless it is there.
func (i *Image) write() error {
	reference, err := name.NewTag(i.Reference(DefaultRepository))
	if err != nil {
		return err
	}
	if there, err := tarball.ImageFromPath(i.File, &reference); err == nil {
		config, err := there.ConfigName()
		want, wantErr := i.image.ConfigName()
		if err == nil && wantErr == nil && config == want {
			return nil
		}
	}
	if err := os.MkdirAll(filepath.Dir(i.File), 0o755); err != nil {
		return err
	}
	temp := i.File + ".new"
	err = tarball.WriteToFile(temp, reference, i.image)
	if err == nil {
		err = os.Rename(temp, i.File)
	}
	if err != nil {
		if removed := os.Remove(temp); removed != nil && !errors.Is(removed, fs.ErrNotExist) {
			err = errors.Join(err, removed)
		}
	}
	return err
}
