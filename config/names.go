package config

import (
	"net/url"
	"path/filepath"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// spiffeID reads the ID of a gateway: with a path, since an ID without one names
// a trust domain, and no leaf certificate may have it (X509-SVID §4.1).
func spiffeID(text string) (spiffeid.ID, *mistake) {
	id, err := spiffeid.FromString(text)
	switch {
	case strings.ContainsAny(text, "*?"):
		return spiffeid.ID{}, wrong("list each ID as it is", "%s has a wildcard, which is not supported", quote(text))
	case err != nil:
		return spiffeid.ID{}, wrong("write it as spiffe://mesh.example/gateway/east", "%s is no SPIFFE ID: %v", quote(text), err)
	case id.Path() == "":
		return spiffeid.ID{}, wrong("add its path, as "+text+"/gateway/east", "%s names a trust domain, not a gateway", text)
	}
	return id, nil
}

// trustDomain reads the name of one.
func trustDomain(text string) (spiffeid.TrustDomain, *mistake) {
	td, err := spiffeid.TrustDomainFromString(text)
	switch {
	case err != nil:
		return td, wrong("write it as partner.example", "%s is no trust domain: %v", quote(text), err)
	case td.Name() != text:
		return spiffeid.TrustDomain{}, wrong("write "+td.Name(), "%s is an ID, not the name of a trust domain", quote(text))
	}
	return td, nil
}

// maxSerial is the longest serial number of a certificate, in hexadecimal digits:
// 20 octets (RFC 5280 §4.1.2.2).
const maxSerial = 40

// serial reads the number of a certificate as openssl prints it: in hexadecimal,
// large or small, with colons between the octets or without.
func serial(text string) (string, *mistake) {
	const hint = "write it as openssl x509 -noout -serial prints it, without serial="
	digits := strings.TrimLeft(strings.ToLower(strings.ReplaceAll(text, ":", "")), "0")
	switch {
	case digits == "":
		return "", wrong(hint, "%s is no serial number", quote(text))
	case strings.Trim(digits, "0123456789abcdef") != "":
		return "", wrong(hint, "%s is no serial number in hexadecimal", quote(text))
	case len(digits) > maxSerial:
		return "", wrong(hint, "%s has more than %d digits", quote(text), maxSerial)
	}
	return digits, nil
}

// maxSocket is the longest path of a Unix socket (unix(7), sun_path with its NUL).
const maxSocket = 107

// socketPath reads where a Unix socket is to be.
func socketPath(text string) (string, *mistake) {
	switch {
	case !strings.HasPrefix(text, "/"):
		return "", wrong("write an absolute path, as /run/wishbone/admin.sock", "%s is no absolute path", quote(text))
	case len(text) > maxSocket:
		return "", wrong("", "is longer than a socket's path may be, %d bytes", maxSocket)
	case strings.HasSuffix(text, "/"):
		return "", wrong("add the socket's name", "%s is a directory", quote(text))
	}
	return filepath.Clean(text), nil
}

// workloadAPI reads the address of a SPIFFE Workload API (SPIFFE Workload
// Endpoint §4): a Unix socket. The standard also has tcp, in the clear: a private
// key does not travel so.
func workloadAPI(text string) (string, *mistake) {
	const hint = "write unix:///run/spire/sockets/agent.sock"
	if strings.HasPrefix(text, "/") {
		return "", wrong("write unix://"+text, "%s has no scheme", quote(text))
	}
	u, err := url.Parse(text)
	switch {
	case err == nil && u.Scheme == "tcp":
		return "", wrong(hint, "%s would send our private key in the clear", quote(text))
	case err != nil || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "" || u.Scheme != "unix":
		return "", wrong(hint, "%s is no Workload API address", quote(text))
	}
	if _, m := socketPath(u.Path); u.Host != "" || m != nil {
		return "", wrong("write unix:// and an absolute path, three slashes in all", "%s is no Workload API address", quote(text))
	}
	return text, nil
}

// file reads the path of a file; a relative one is in dir.
func file(dir string) func(string) (string, *mistake) {
	return func(text string) (string, *mistake) {
		switch {
		case text == "", strings.HasSuffix(text, "/"):
			return "", wrong("", "%s is no file", quote(text))
		case filepath.IsAbs(text):
			return filepath.Clean(text), nil
		}
		return filepath.Join(dir, text), nil
	}
}

// cgroup reads the path of a cgroup below /sys/fs/cgroup, as firewalls take it.
func cgroup(text string) (string, *mistake) {
	below := strings.Trim(strings.TrimPrefix(text, "/sys/fs/cgroup"), "/")
	switch {
	case below == "":
		return "", wrong("name one, as system.slice/ssh.service", "%s is the root of all cgroups", quote(text))
	case below != text:
		return "", wrong("write "+below, "%s is not relative to the root of all cgroups", quote(text))
	case !filepath.IsLocal(text) || filepath.Clean(text) != text:
		return "", wrong("", "%s goes up, or nowhere", quote(text))
	}
	return text, nil
}
