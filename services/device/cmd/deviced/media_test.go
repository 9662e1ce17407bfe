package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"image"
	encoder "image/png"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/metadata"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/service"
)

// picture is a PNG.
func picture(t *testing.T, width int) []byte {
	t.Helper()
	var out bytes.Buffer
	require.NoError(t, encoder.Encode(&out, image.NewGray(image.Rect(0, 0, width, 100))))
	return out.Bytes()
}

// media is what somebody says to the door for media.
type media struct {
	t      *testing.T
	base   string
	header http.Header
}

func (m *media) do(method, path string, body []byte, header ...string) (*http.Response, []byte) {
	m.t.Helper()
	request, err := http.NewRequestWithContext(m.t.Context(), method, m.base+path, bytes.NewReader(body))
	require.NoError(m.t, err)
	request.Header = m.header.Clone()
	request.Header.Set("Tus-Resumable", "1.0.0")
	for i := 0; i < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	response, err := http.DefaultClient.Do(request)
	require.NoError(m.t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(m.t, err)
	return response, text
}

func (m *media) refused(response *http.Response, text []byte, status int, reason string) {
	m.t.Helper()
	var problem struct{ Reason string }
	require.NoError(m.t, json.Unmarshal(text, &problem), "%s", text)
	require.Equal(m.t, [2]any{status, reason}, [2]any{response.StatusCode, problem.Reason})
}

// begin begins an upload and returns its path.
func (m *media) begin(content []byte, organisationID string) (*http.Response, []byte) {
	m.t.Helper()
	sum := sha256.Sum256(content)
	return m.do(http.MethodPost, "/v1/media/uploads?organisation_id="+organisationID, nil,
		"Upload-Length", strconv.Itoa(len(content)),
		"Upload-Metadata", "sha256 "+base64.StdEncoding.EncodeToString([]byte(hex.EncodeToString(sum[:]))))
}

// Media are uploaded by whoever makes something for an organisation, in parts, at
// one instance and another, and read by whoever knows their name.
func TestMedia(t *testing.T) {
	w := newWorld(t)
	folder := "file://" + t.TempDir()
	where := make(chan string, 1)
	at := func() string {
		t.Helper()
		i := w.startWith(t, func(cfg *config) { cfg.OnMedia = func(address string) { where <- address } }, "--media-url="+folder)
		t.Cleanup(i.stop)
		return "http://" + <-where
	}
	first, second := at(), at()
	as := func(base, account string, role auth.Role) *media {
		header := http.Header{}
		if account != "" {
			sent, _ := metadata.FromOutgoingContext(w.as(t.Context(), t, account, organisation, role))
			header.Set("Authorization", sent.Get("authorization")[0])
		}
		return &media{t, base, header}
	}
	content := picture(t, 500)
	sum := sha256.Sum256(content)
	name := "/v1/media/" + hex.EncodeToString(sum[:])

	ada := as(first, "acc_ada", auth.Advertiser)
	response, text := ada.begin(content, organisation)
	require.Equal(t, http.StatusCreated, response.StatusCode, "%s", text)
	upload, err := response.Location()
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(upload.Path, "/v1/media/uploads/"), upload.Path)
	half := len(content) / 2
	patch := func(m *media, offset int, part []byte) (*http.Response, []byte) {
		return m.do(http.MethodPatch, upload.Path, part, "Content-Type", "application/offset+octet-stream", "Upload-Offset", strconv.Itoa(offset))
	}
	response, text = patch(ada, 0, content[:half])
	require.Equal(t, http.StatusNoContent, response.StatusCode, "%s", text)
	response, text = ada.do(http.MethodGet, name, nil)
	ada.refused(response, text, http.StatusNotFound, "BLOB_UNKNOWN")

	eve := as(second, "acc_eve", auth.Owner)
	response, text = patch(eve, half, content[half:])
	eve.refused(response, text, http.StatusNotFound, "UPLOAD_UNKNOWN")
	there := as(second, "acc_ada", auth.Advertiser)
	response, text = patch(there, half, content[half:])
	require.Equal(t, http.StatusNoContent, response.StatusCode, "%s", text)

	anybody := as(first, "", "")
	response, text = anybody.do(http.MethodGet, name, nil)
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.Equal(t, "image/png", response.Header.Get("Content-Type"))
	require.True(t, bytes.Equal(content, text))
	response, text = anybody.do(http.MethodGet, name, nil, "Range", "bytes=10-19")
	require.Equal(t, http.StatusPartialContent, response.StatusCode)
	require.True(t, bytes.Equal(content[10:20], text))

	t.Run("ErrNobody", func(t *testing.T) {
		m := as(first, "", "")
		response, text := m.begin(content, organisation)
		m.refused(response, text, http.StatusUnauthorized, "TOKEN_MISSING")
	})
	t.Run("ErrViewer", func(t *testing.T) {
		m := as(first, "acc_bob", auth.Viewer)
		response, text := m.begin(content, organisation)
		m.refused(response, text, http.StatusForbidden, "ROLE_NOT_ALLOWED")
	})
	t.Run("ErrStranger", func(t *testing.T) {
		response, text := ada.begin(content, another)
		ada.refused(response, text, http.StatusForbidden, "NOT_A_MEMBER")
	})
	t.Run("ErrLies", func(t *testing.T) {
		page := []byte("<!DOCTYPE html><script>alert(1)</script>" + strings.Repeat(" ", 1000))
		response, text := ada.begin(page, organisation)
		require.Equal(t, http.StatusCreated, response.StatusCode, "%s", text)
		upload, err := response.Location()
		require.NoError(t, err)
		response, text = ada.do(http.MethodPatch, upload.Path, page, "Content-Type", "application/offset+octet-stream", "Upload-Offset", "0")
		ada.refused(response, text, http.StatusUnsupportedMediaType, "MEDIA_TYPE_UNSUPPORTED")
	})
	t.Run("ErrForNobody", func(t *testing.T) {
		response, text := ada.begin(content, "")
		ada.refused(response, text, http.StatusBadRequest, "ORGANISATION_MISSING")
	})
}

func TestMediaFlags(t *testing.T) {
	for _, flags := range [][]string{{"--media-listen=nowhere"}} {
		_, err := service.Parse[config]("device", append([]string{"--mesh=plaintext", "--environment=test", "--mode=test"}, flags...), io.Discard)
		require.ErrorContains(t, err, "--media-listen")
	}
}
