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

// A token is a sign-in.
type token struct {
	id      string // unlike any other: what it is revoked by
	user    string
	expires time.Time
}

// A signer makes and checks the texts of tokens: user, ID and the time until which it
// holds, in the clear, and an HMAC-SHA256 of all three. They are as good as its key,
// which is random and lives as long as the process, or as a file (see key.go); who has
// several processes shares one.
type signer struct {
	key     [sha256.Size]byte
	revoked *revocations
}

// newSigner returns a signer whose tokens end with the process.
func newSigner() *signer {
	s := &signer{revoked: newRevocations("")}
	rand.Read(s.key[:])
	return s
}

// issue signs user in, until expires, to the second.
func (s *signer) issue(user string, expires time.Time) string {
	body := user + "|" + strconv.FormatInt(expires.Unix(), 10) + "|" + rand.Text()
	return encode([]byte(body)) + "." + encode(s.mac(body))
}

// verify returns the token that a text stands for. It looks at the signature before
// it believes a word of the rest.
func (s *signer) verify(text string, now time.Time) (token, error) {
	left, right, _ := strings.Cut(text, ".")
	body, err := base64.RawURLEncoding.Strict().DecodeString(left)
	if err != nil {
		return token{}, errToken
	}
	mac, err := base64.RawURLEncoding.Strict().DecodeString(right)
	if err != nil || !hmac.Equal(mac, s.mac(string(body))) {
		return token{}, errToken
	}
	user, rest, _ := strings.Cut(string(body), "|")
	at, id, _ := strings.Cut(rest, "|")
	seconds, err := strconv.ParseInt(at, 10, 64)
	t := token{id: id, user: user, expires: time.Unix(seconds, 0)}
	if err != nil || !now.Before(t.expires) || s.revoked.has(id) {
		return token{}, errToken
	}
	return t, nil
}

// mac binds the body to its purpose: the same key may sign other things one day.
func (s *signer) mac(body string) []byte {
	h := hmac.New(sha256.New, s.key[:])
	h.Write([]byte("exchange sign-in v2\x00"))
	h.Write([]byte(body))
	return h.Sum(nil)
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
