"""
Translation of provider header fields into X-Cmail fields, by rule files.

Pure: header section, envelope and ruleset in; edits, what was set by which rule, and what could not be expressed out.
"""
