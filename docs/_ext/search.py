"""Search in English and Chinese pages of one site."""

from sphinx.search.zh import SearchChinese


class SearchBoth(SearchChinese):
    """Words of Latin letters are stemmed as English, Chinese text is split by jieba.

    Sphinx names the stemmer after the language, and there is none for Chinese. A browser has no jieba either: it
    takes the longest words that the index knows.
    """

    language_name = "English"
    js_splitter_code = r"""
var splitQuery = function (query) {
  const known = (term) => Search._index && (term in Search._index.terms || term in Search._index.titleterms);
  const found = [];
  for (const piece of query.split(/[^\p{Letter}\p{Number}_]+/gu))
    for (const run of piece.match(/\p{Script=Han}+|[^\p{Script=Han}]+/gu) ?? []) {
      if (!/\p{Script=Han}/u.test(run)) { found.push(run); continue; }
      for (let at = 0; at < run.length; ) {
        let length = Math.min(6, run.length - at);
        while (length > 1 && !known(run.slice(at, at + length))) length--;
        if (length > 1) found.push(run.slice(at, at + length));
        at += length;
      }
    }
  return found;
};
"""
