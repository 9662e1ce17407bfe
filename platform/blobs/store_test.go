package blobs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"github.com/stretchr/testify/require"
	"gocloud.dev/blob/memblob"
)

// onEach runs a test on a folder, on memory and on a server that speaks S3. open
// gives another Store on the same bucket each time it is called.
func onEach(t *testing.T, test func(t *testing.T, open func(Limits) *Store)) {
	t.Helper()
	t.Run("Folder", func(t *testing.T) { test(t, opener(t, "file://"+filepath.Join(t.TempDir(), "new", "media"))) })
	t.Run("Memory", func(t *testing.T) {
		bucket := memblob.OpenBucket(nil)
		t.Cleanup(func() { require.NoError(t, bucket.Close()) })
		test(t, func(limits Limits) *Store { return newStore(bucket, limits) })
	})
	t.Run("S3", func(t *testing.T) { test(t, opener(t, s3Server(t)+"&prefix=in/here/")) })
}

func opener(t testing.TB, address string) func(Limits) *Store {
	return func(limits Limits) *Store {
		s, err := Open(t.Context(), address, limits)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, s.Close()) })
		require.NoError(t, s.Check(t.Context()))
		return s
	}
}

// s3Server starts one and returns the URL of a bucket of it.
func s3Server(t testing.TB) string {
	t.Helper()
	backend := s3mem.New()
	require.NoError(t, backend.CreateBucket("media"))
	server := httptest.NewServer(gofakes3.New(backend).Server())
	t.Cleanup(server.Close)
	credentials := filepath.Join(t.TempDir(), "credentials")
	require.NoError(t, os.WriteFile(credentials, []byte("[default]\naws_access_key_id = me\naws_secret_access_key = secret\n"), 0o600))
	return "s3://media?endpoint=" + server.URL + "&credentials=" + credentials
}

// folderStore is a store in a folder of its own.
func folderStore(t testing.TB, limits Limits) *Store {
	t.Helper()
	return opener(t, "file://"+t.TempDir())(limits)
}

// png is n bytes that are an image as far as anybody looks; seed makes them differ.
func png(n int, seed uint64) []byte {
	random := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	b := make([]byte, n)
	_, _ = random.Read(b)
	copy(b, "\x89PNG\r\n\x1a\n")
	return b
}

func put(t testing.TB, s *Store, content []byte) Info {
	t.Helper()
	info, err := s.Put(t.Context(), bytes.NewReader(content), Expect{Sum: sha256.Sum256(content)})
	require.NoError(t, err)
	return info
}

func get(t testing.TB, s *Store, sum Sum) []byte {
	t.Helper()
	r, err := s.Open(t.Context(), sum, 0, -1)
	require.NoError(t, err)
	defer r.Close()
	content, err := io.ReadAll(r)
	require.NoError(t, err)
	return content
}

// keys are those of everything in the store.
func keys(t testing.TB, s *Store) []string {
	t.Helper()
	var all []string
	objects, err := s.list(t.Context(), "")
	require.NoError(t, err)
	for _, o := range objects {
		all = append(all, o.key)
	}
	return all
}

func TestPut(t *testing.T) {
	onEach(t, func(t *testing.T, open func(Limits) *Store) {
		s := open(Limits{BlobSize: 1 << 20})
		content := png(700_000, 1)
		sum := Sum(sha256.Sum256(content))
		_, err := s.Stat(t.Context(), sum)
		require.ErrorIs(t, err, ErrUnknown)

		want := Info{Sum: sum, Size: 700_000, MediaType: "image/png"}
		info, err := s.Put(t.Context(), iotest.HalfReader(bytes.NewReader(content)), Expect{MediaType: "image/png"})
		require.NoError(t, err)
		require.Equal(t, want, info)
		require.Equal(t, []string{sum.key()}, keys(t, s), "and nothing besides")

		info, err = open(Limits{}).Stat(t.Context(), sum)
		require.NoError(t, err)
		require.Equal(t, want, info)
		require.Equal(t, content, get(t, s, sum))

		info, err = s.Put(t.Context(), iotest.ErrReader(errors.New("it was read")), Expect{Sum: sum})
		require.NoError(t, err, "what is there is not sent again")
		require.Equal(t, want, info)
		_, err = s.Put(t.Context(), bytes.NewReader(content), Expect{Sum: sum, MediaType: "video/mp4"})
		require.ErrorIs(t, err, ErrMediaTypeClaim)
		info, err = s.Put(t.Context(), bytes.NewReader(content), Expect{})
		require.NoError(t, err)
		require.Equal(t, want, info)
		require.Equal(t, []string{sum.key()}, keys(t, s))

		require.NoError(t, s.Delete(t.Context(), sum))
		require.ErrorIs(t, s.Delete(t.Context(), sum), ErrUnknown)
		_, err = s.Open(t.Context(), sum, 0, -1)
		require.ErrorIs(t, err, ErrUnknown)
		require.Equal(t, want, put(t, s, content), "it may come back")
	})
}

func TestPutRefuses(t *testing.T) {
	onEach(t, func(t *testing.T, open func(Limits) *Store) {
		s := open(Limits{BlobSize: 100_000})
		fine := png(80_000, 2)
		broken := errors.New("the wire broke")
		for _, test := range []struct {
			name    string
			content io.Reader
			expect  Expect
			want    error
		}{
			{"Empty", strings.NewReader(""), Expect{}, ErrEmpty},
			{"EmptyThatWasNamed", strings.NewReader(""), Expect{Sum: sha256.Sum256(nil)}, ErrEmpty},
			{"LargerThanTheStoreTakes", bytes.NewReader(png(100_001, 2)), Expect{}, ErrTooLarge},
			{"LargerThanWasSaid", bytes.NewReader(fine), Expect{Limit: 79_999}, ErrTooLarge},
			{"AnotherSum", bytes.NewReader(fine), Expect{Sum: sha256.Sum256([]byte("x"))}, ErrSum},
			{"Truncated", bytes.NewReader(fine[:79_999]), Expect{Sum: sha256.Sum256(fine)}, ErrSum},
			{"AnotherMediaType", bytes.NewReader(fine), Expect{MediaType: "image/jpeg"}, ErrMediaTypeClaim},
			{"ClaimThatIsNone", bytes.NewReader(fine), Expect{MediaType: "image/"}, ErrMediaTypeClaim},
			{"HTML", strings.NewReader("<!DOCTYPE html><script>alert(1)</script>"), Expect{}, ErrMediaType},
			{"HTMLThatClaimsToBeText", strings.NewReader("<html>"), Expect{MediaType: "text/plain"}, ErrMediaType},
			{"Bytes", bytes.NewReader([]byte{1, 2, 3, 4}), Expect{}, ErrMediaType},
			{"Latin1", strings.NewReader("Gr\xfc\xdfe"), Expect{}, ErrMediaType},
			{"TextThatEndsInACharacter", strings.NewReader(strings.Repeat("x", 1000) + "\xc3"), Expect{}, ErrMediaType},
			{"Failing", io.MultiReader(bytes.NewReader(fine), iotest.ErrReader(broken)), Expect{}, broken},
			{"FailingAtOnce", iotest.ErrReader(broken), Expect{Sum: sha256.Sum256(fine)}, broken},
			{"FailingWithASum", io.MultiReader(bytes.NewReader(fine), iotest.ErrReader(broken)), Expect{Sum: sha256.Sum256(fine)}, broken},
		} {
			t.Run(test.name, func(t *testing.T) {
				_, err := s.Put(t.Context(), test.content, test.expect)
				require.ErrorIs(t, err, test.want)
				require.Empty(t, keys(t, s))
			})
		}
		t.Run("Cancelled", func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			_, err := s.Put(ctx, io.MultiReader(bytes.NewReader(fine[:60_000]), cancelling{cancel}, bytes.NewReader(fine[60_000:])), Expect{})
			require.Error(t, err)
			require.Empty(t, keys(t, s))
		})
	})
}

// cancelling has no bytes, and ends a context where they would be.
type cancelling struct{ cancel func() }

func (c cancelling) Read([]byte) (int, error) {
	c.cancel()
	return 0, io.EOF
}

func TestOpen(t *testing.T) {
	onEach(t, func(t *testing.T, open func(Limits) *Store) {
		s := open(Limits{})
		content := png(10_000, 3)
		sum := put(t, s, content).Sum
		for _, test := range []struct {
			offset, length int64
			want           []byte
		}{
			{0, -1, content},
			{0, 0, nil},
			{0, 1, content[:1]},
			{9_999, -1, content[9_999:]},
			{500, 600, content[500:1_100]},
			{9_000, 5_000, content[9_000:]},
			{10_000, -1, nil},
			{10_000, 5, nil},
		} {
			t.Run(fmt.Sprintf("%d+%d", test.offset, test.length), func(t *testing.T) {
				r, err := s.Open(t.Context(), sum, test.offset, test.length)
				require.NoError(t, err)
				defer r.Close()
				got, err := io.ReadAll(r)
				require.NoError(t, err)
				require.True(t, bytes.Equal(test.want, got), "%d bytes instead of %d", len(got), len(test.want))
			})
		}
		for _, offset := range []int64{-1, 10_001} {
			_, err := s.Open(t.Context(), sum, offset, -1)
			require.ErrorIs(t, err, errOutOfRange)
		}
	})
}

func TestMediaTypes(t *testing.T) {
	mp4 := "\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41"
	webm := "\x1aE\xdf\xa3\x9fB\x86\x81\x01B\xf7\x81\x01B\xf2\x81\x04B\xf3\x81\x08B\x82\x84webmB\x87\x81\x04"
	s := folderStore(t, Limits{})
	for _, test := range []struct{ content, want string }{
		{"\x89PNG\r\n\x1a\n...", "image/png"},
		{"\xff\xd8\xff\xe0\x00\x10JFIF", "image/jpeg"},
		{"GIF89a......", "image/gif"},
		{"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"},
		{mp4, "video/mp4"},
		{webm, "video/webm"},
		{"Frühling", textType},
		{strings.Repeat("ü", 511) + "€", textType},
		{strings.Replace(webm, "webmB", "mkvvB", 1), ""},
		{"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", textType}, // shown as what it is not, and so harmless
		{"<?xml version='1.0'?><svg/>", ""},
		{"%PDF-1.7", ""},
		{"PK\x03\x04", ""},
		{"MZ\x90\x00", ""},
		{"\xfe\xff\x00a", ""},
		{strings.Repeat("x", 600) + "\x00", ""},
	} {
		t.Run(fmt.Sprintf("%.12q", test.content), func(t *testing.T) {
			info, err := s.Put(t.Context(), strings.NewReader(test.content), Expect{MediaType: test.want})
			if test.want == "" {
				require.ErrorIs(t, err, ErrMediaType)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.want, info.MediaType)
			info, err = s.Stat(t.Context(), info.Sum)
			require.NoError(t, err)
			require.Equal(t, test.want, info.MediaType, "as the store finds it again")
		})
	}
}

// What Put says of text does not depend on where reads end.
func TestTextInPieces(t *testing.T) {
	for _, whole := range []string{"", "a", "ü", "€", "𝄞", "aü€𝄞", "ab\xff", "\xe2\x82", "\xe2\x82a", "\xc3\xc3", "a\x00b", "\xed\xa0\x80"} {
		want := !strings.Contains(whole, "\x00") && strings.ToValidUTF8(whole, "!") == whole
		for size := 1; size <= len(whole)+1; size++ {
			var got text
			for rest := []byte(whole); len(rest) > 0; {
				n := min(size, len(rest))
				got.add(rest[:n])
				rest = rest[n:]
			}
			require.Equal(t, want, got.valid(), "%q by %d", whole, size)
		}
	}
}

func TestParseSum(t *testing.T) {
	name := strings.Repeat("0123456789abcdef", 4)
	sum, err := ParseSum(name)
	require.NoError(t, err)
	require.Equal(t, name, sum.String())
	for _, wrong := range []string{"", name[:63], name + "0", strings.ToUpper(name), name[:63] + "g", "../" + name[3:], name[:62] + "/.", name[:63] + "\x00", " " + name[1:]} {
		_, err := ParseSum(wrong)
		require.ErrorIs(t, err, errName, "%q", wrong)
	}
}

// A folder has the contents as they are, in files that only blobs are, and nothing
// beside them.
func TestFolder(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "a", "b")
	s := opener(t, "file://"+folder)(Limits{})
	content := png(1000, 4)
	sum := put(t, s, content).Sum
	var files []string
	require.NoError(t, filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if !entry.IsDir() {
			files = append(files, path)
		}
		return err
	}))
	require.Equal(t, []string{filepath.Join(folder, "blobs", sum.String()[:2], sum.String())}, files)
	got, err := os.ReadFile(files[0])
	require.NoError(t, err)
	require.Equal(t, content, got)

	t.Run("WhatSomebodyElsePutThere", func(t *testing.T) {
		other := Sum{1}
		path := filepath.Join(folder, other.key())
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o750))
		require.NoError(t, os.WriteFile(path, []byte("<html>"), 0o600))
		info, err := s.Stat(t.Context(), other)
		require.NoError(t, err)
		require.NotContains(t, MediaTypes(), info.MediaType)
	})
	t.Run("AFileInItsPlace", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "file")
		require.NoError(t, os.WriteFile(path, nil, 0o600))
		_, err := Open(t.Context(), "file://"+path, Limits{})
		require.ErrorContains(t, err, path)
	})
}

func TestParseURL(t *testing.T) {
	for _, test := range []struct {
		url  string
		want location
	}{
		{"file:///var/lib/media", location{folder: "/var/lib/media"}},
		{"file://localhost/var/lib/../media/", location{folder: "/var/media"}},
		{"s3://bucket", location{bucket: "bucket", region: "us-east-1"}},
		{
			"s3://bucket/?endpoint=https%3A%2F%2Fs3.example.com%3A9000&region=eu-1&prefix=a/b/&credentials=/run/s3",
			location{bucket: "bucket", endpoint: "https://s3.example.com:9000", region: "eu-1", prefix: "a/b/", credentials: "/run/s3"},
		},
	} {
		got, err := parseURL(test.url)
		require.NoError(t, err, test.url)
		require.Equal(t, test.want, got)
	}
	for url, why := range map[string]string{
		"":                                  "want file:///folder or s3://bucket",
		"/var/lib/media":                    "want file:///folder or s3://bucket",
		"mem://":                            "want file:///folder or s3://bucket",
		"file://var/lib/media":              "three slashes",
		"file:///":                          "name a folder",
		"file://":                           "name a folder",
		"file:///media?metadata=on":         "there is no parameter metadata",
		"s3://":                             "name a bucket",
		"s3://bucket/folder":                "nothing after it",
		"s3://bucket?prefix=a":              "ends with a slash",
		"s3://bucket?endpoint=localhost:90": "must be the URL of a server",
		"s3://bucket?endpoint=ftp://x":      "must be the URL of a server",
		"s3://bucket?b=1&a=1&region=x":      "there is no parameter a, b",
		"s3://bucket?%zz":                   "invalid URL escape",
		"s3://key:hunter2@bucket":           "no place for secrets",
		"s3://b?credentials=/does/not/be":   "no such file",
	} {
		_, err := Open(t.Context(), url, Limits{})
		require.ErrorContains(t, err, why, url)
		require.NotContains(t, err.Error(), "hunter2")
	}
}

func TestStoreThatIsAway(t *testing.T) {
	away := httptest.NewServer(nil)
	away.Close()
	t.Setenv("AWS_ACCESS_KEY_ID", "me")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	t.Setenv("AWS_MAX_ATTEMPTS", "1")
	s, err := Open(t.Context(), "s3://media?endpoint="+away.URL, Limits{})
	require.NoError(t, err, "who starts before its store does not fail")
	defer s.Close()
	require.ErrorIs(t, s.Check(t.Context()), errAway)
	_, err = s.Put(t.Context(), bytes.NewReader(png(1000, 5)), Expect{})
	require.ErrorIs(t, err, errAway)
	_, err = s.Stat(t.Context(), Sum{})
	require.ErrorIs(t, err, errAway)

	t.Run("NoSuchBucket", func(t *testing.T) {
		address := strings.Replace(s3Server(t), "s3://media", "s3://other", 1)
		s, err := Open(t.Context(), address, Limits{})
		require.NoError(t, err)
		defer s.Close()
		require.ErrorIs(t, s.Check(t.Context()), errAway)
	})
}

func TestFullDisk(t *testing.T) {
	folder := t.TempDir()
	if err := syscall.Mount("tmpfs", folder, "tmpfs", 0, "size=1m"); err != nil {
		t.Skip("a small file system cannot be mounted here: ", err)
	}
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(folder, 0)) })
	s := opener(t, "file://"+folder)(Limits{})
	small, large := png(400_000, 6), png(3_000_000, 7)
	sum := put(t, s, small).Sum

	_, err := s.Put(t.Context(), bytes.NewReader(large), Expect{Sum: sha256.Sum256(large)})
	require.ErrorIs(t, err, errFull)
	require.Len(t, keys(t, s), 1, "no half blob")

	u := begin(t, s, large)
	got, err := s.Append(t.Context(), owner, u.ID, Chunk{Length: -1, Body: bytes.NewReader(large)})
	require.ErrorIs(t, err, errFull)
	require.Zero(t, got.Offset)
	require.NoError(t, s.Abort(t.Context(), owner, u.ID))

	require.Equal(t, small, get(t, s, sum), "what was there still is")
	other := png(400_000, 8)
	require.Equal(t, other, get(t, s, put(t, s, other).Sum), "there is room again")
}

func TestSweep(t *testing.T) {
	onEach(t, func(t *testing.T, open func(Limits) *Store) {
		s := open(Limits{})
		content := png(10_000, 9)
		kept := put(t, s, png(500, 10)).Sum
		abandoned, finished := begin(t, s, content), begin(t, s, content)
		for _, u := range []Upload{abandoned, finished} {
			_, err := s.Append(t.Context(), owner, u.ID, Chunk{Length: -1, Body: bytes.NewReader(content[:5000])})
			require.NoError(t, err)
		}
		require.NoError(t, s.save(t.Context(), incomingPrefix+"left", []byte("by a process that was killed")))
		if s.folder != "" {
			require.NoError(t, os.WriteFile(filepath.Join(s.folder, kept.key()+".17ab.tmp"), []byte("left"), 0o600))
			require.NoError(t, os.Mkdir(filepath.Join(s.folder, uploadsPrefix, "empty"), 0o750))
		}
		before := keys(t, s)
		n, err := s.Sweep(t.Context(), time.Now().Add(-time.Hour))
		require.NoError(t, err)
		require.Zero(t, n)
		require.Equal(t, before, keys(t, s), "nothing is old")

		_, err = s.Append(t.Context(), owner, finished.ID, Chunk{Offset: 5000, Length: -1, Body: bytes.NewReader(content[5000:])})
		require.NoError(t, err)
		info, err := s.Finish(t.Context(), owner, finished.ID)
		require.NoError(t, err)
		n, err = open(Limits{}).Sweep(t.Context(), time.Now().Add(time.Hour))
		require.NoError(t, err)
		require.Equal(t, 1, n)
		require.ElementsMatch(t, []string{kept.key(), info.Sum.key()}, keys(t, s), "blobs are never old")
		for _, u := range []Upload{abandoned, finished} {
			_, err := s.Upload(t.Context(), owner, u.ID)
			require.ErrorIs(t, err, ErrUploadUnknown)
		}
		if s.folder != "" {
			left, err := os.ReadDir(filepath.Join(s.folder, uploadsPrefix))
			require.NoError(t, err)
			require.Empty(t, left)
		}
	})
}
