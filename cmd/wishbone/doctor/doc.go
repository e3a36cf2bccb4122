// Package doctor looks at a host, and says what would keep a gateway with a given
// configuration from working there, or does now, each with its remedy.
//
// It changes nothing: no sysctl, no rule, no file. It asks the kernel, tries the
// rules in an empty network namespace of its own, and knocks at peers' doors as
// a gateway would.
package doctor
