package account

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"testing"

	"github.com/stretchr/testify/require"
)

func newSecret(t *testing.T, fill byte) *Secret {
	t.Helper()
	s, err := ParseSecret(hex.EncodeToString(bytes.Repeat([]byte{fill}, 32)))
	require.NoError(t, err)
	return s
}

func TestSecret(t *testing.T) {
	raw := bytes.Repeat([]byte{0xfb, 0xef}, 16)
	sealed, err := newSecret(t, 1).seal([]byte("seed"), "key_1", rand.Reader)
	require.NoError(t, err)

	t.Run("OK", func(t *testing.T) {
		var prints [][]byte
		for _, text := range []string{
			hex.EncodeToString(raw), base64.StdEncoding.EncodeToString(raw) + "\n", base64.RawStdEncoding.EncodeToString(raw),
			base64.URLEncoding.EncodeToString(raw), " " + base64.RawURLEncoding.EncodeToString(raw),
		} {
			s, err := ParseSecret(text)
			require.NoError(t, err, text)
			prints = append(prints, s.fingerprint("x"))
		}
		for _, p := range prints {
			require.Equal(t, prints[0], p)
		}
		plain, err := newSecret(t, 1).open(sealed, "key_1")
		require.NoError(t, err)
		require.Equal(t, "seed", string(plain))
	})
	t.Run("OKFingerprint", func(t *testing.T) {
		s := newSecret(t, 1)
		require.NotEqual(t, s.fingerprint("ab", "c"), s.fingerprint("a", "bc"))
		require.NotEqual(t, s.fingerprint("ab"), newSecret(t, 2).fingerprint("ab"))
	})
	for _, text := range []string{"", "secret", hex.EncodeToString(raw[:31]), base64.StdEncoding.EncodeToString(append(raw, 1))} {
		t.Run("ErrSecret", func(t *testing.T) {
			_, err := ParseSecret(text)
			require.ErrorContains(t, err, "want 32 random bytes")
		})
	}
	t.Run("ErrOtherName", func(t *testing.T) {
		_, err := newSecret(t, 1).open(sealed, "key_2")
		require.ErrorContains(t, err, "does not open key_2")
	})
	t.Run("ErrOtherSecret", func(t *testing.T) {
		_, err := newSecret(t, 2).open(sealed, "key_1")
		require.Error(t, err)
	})
	t.Run("ErrShort", func(t *testing.T) {
		_, err := newSecret(t, 1).open(sealed[:5], "key_1")
		require.Error(t, err)
	})
}
