package main

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"time"
)

var errToken = errors.New("not signed in, or no longer")

// A signer makes and checks the tokens that say who somebody is: the user and
// the time until which it holds, in the clear, and an HMAC-SHA256 of both. A
// token is as good as its key, which is random and lives as long as the
// process, or as a file; who has several processes shares one.
type signer struct {
	key [sha256.Size]byte
}

func newSigner() *signer {
	s := new(signer)
	rand.Read(s.key[:])
	return s
}

func (s *signer) issue(user string, expires time.Time) string {
	body := user + "|" + strconv.FormatInt(expires.Unix(), 10)
	return encode([]byte(body)) + "." + encode(s.mac(body))
}

// verify returns whom the token was issued to and until when. It looks at the
// signature before it believes a word of the rest.
func (s *signer) verify(token string, now time.Time) (user string, expires time.Time, err error) {
	left, right, _ := strings.Cut(token, ".")
	body, err := base64.RawURLEncoding.Strict().DecodeString(left)
	if err != nil {
		return "", time.Time{}, errToken
	}
	mac, err := base64.RawURLEncoding.Strict().DecodeString(right)
	if err != nil || !hmac.Equal(mac, s.mac(string(body))) {
		return "", time.Time{}, errToken
	}
	user, at, _ := strings.Cut(string(body), "|")
	seconds, err := strconv.ParseInt(at, 10, 64)
	expires = time.Unix(seconds, 0)
	if err != nil || !now.Before(expires) {
		return "", time.Time{}, errToken
	}
	return user, expires, nil
}

// mac binds the body to its purpose: the same key may sign other things one day.
func (s *signer) mac(body string) []byte {
	h := hmac.New(sha256.New, s.key[:])
	h.Write([]byte("exchange sign-in v1\x00"))
	h.Write([]byte(body))
	return h.Sum(nil)
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
