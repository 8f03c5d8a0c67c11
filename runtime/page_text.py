"""The words and the looks of the go-live page, English and Korean side by side."""

from collections.abc import Mapping
from typing import Final


def _both(english: str, korean: str) -> str:
    return f"{english} <small>{korean}</small>"


VERDICTS: Final[Mapping[object, str]] = {
    True: "GOOD · 적합",
    False: "NOT GOOD · 부적합",
    "ok": "ok · 적합",
    "note": "note · 참고",
    "warning": "warning · 주의",
    "failed": "FAILED · 부적합",
}
SECTION_NAMES: Final = {
    "signature": "서명",
    "files": "파일",
    "interpreter": "파이썬 인터프리터",
    "venv": "가상 환경",
    "host": "플랫폼",
    "preflight": "사전 점검",
    "models": "모델",
    "network": "네트워크",
}
LABELS: Final = {
    "report": _both("Go-live report", "가동 전 검증 보고서"),
    "summary": _both("What was verified", "검증 대상"),
    "digest": _both("Manifest digest", "매니페스트 다이제스트"),
    "target": _both("Target", "대상 환경"),
    "content": _both("Content", "구성"),
    "release": _both("Release", "릴리스"),
    "installed": _both("Installed", "설치 일시"),
    "signed": _both("Signed by", "서명자"),
    "trust": _both("Trust from", "신뢰 근거"),
    "verified": _both("Verified", "검증 일시"),
    "depth": _both("Depth", "검증 수준"),
    "checks": _both("Checks", "검증 항목"),
    "check": _both("Check", "항목"),
    "result": _both("Result", "결과"),
    "looked_at": _both("Looked at", "확인 내용"),
    "seconds": _both("Seconds", "소요(초)"),
    "models": _both("Answers of the models", "모델 응답"),
    "model": _both("Model", "모델"),
    "answers": _both("Answers", "응답"),
    "difference": _both("Difference", "차이"),
    "computed": _both("Computed", "연산"),
    "no_models": _both("No model was asked.", "모델 응답을 확인하지 않았습니다."),
    "network": _both("Is the network closed?", "네트워크 차단 여부"),
    "routes": _both("Default route", "기본 경로"),
    "interfaces": _both("Interfaces", "인터페이스"),
    "resolvers": _both("Name servers", "네임 서버"),
    "attempts": _both("Attempts by the models", "모델의 접속 시도"),
    "kernel": _both("Kernel's own count", "커널 집계"),
    "preflight": _both("Does the host fit?", "호스트 적합성"),
    "found": _both("Found", "확인됨"),
    "needed": _both("Needed", "필요"),
    "remedy": _both("What to do", "조치"),
    "host": _both("This host", "호스트 정보"),
    "system": _both("System", "시스템"),
    "cpu": _both("CPU", "프로세서"),
    "cores": _both("Cores", "코어"),
    "memory": _both("Memory", "메모리"),
    "gpu": _both("GPU", "그래픽 처리 장치"),
    "overrides": _both("Changed by the operator", "운영자 변경 사항"),
    "no_overrides": _both("Nothing: settings are those that were signed.", "없음: 서명된 설정 그대로입니다."),
    "limits": _both("What this report does not say", "이 보고서가 보증하지 않는 것"),
    "limit_trust": _both(
        "Who signed was judged by the installation's own list of signers, not by one that came another way.",
        "서명자를 별도 경로로 받은 목록이 아니라 설치 폴더 안의 목록으로 판단했습니다.",
    ),
    "limit_quick": _both(
        "Contents were not read: sizes, times and inodes alone were compared.",
        "파일 내용을 읽지 않고 크기·시각·아이노드만 비교했습니다.",
    ),
    "limit_models": _both("The models were not loaded.", "모델을 적재하지 않았습니다."),
    "limit_unrecorded": _both(
        "Some answers could not be compared, since the builder recorded none: that they came is all that is known.",
        "기록된 정답이 없는 응답은 비교하지 못했습니다.",
    ),
    "limit_network": _both(
        "This host has a way out of its own network; that it is closed further on was not tried.",
        "이 호스트에는 기본 경로가 있으며, 그 너머의 차단 여부는 시험하지 않았습니다.",
    ),
    "filed": _both("Data of this report", "보고서 데이터"),
    "signatures": _both("For the file", "결재"),
    "operator": _both("Verified by", "검증자"),
    "approver": _both("Approved by", "승인자"),
    "date": _both("Date", "날짜"),
}
PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$title: go-live report</title>
<style>
:root { --ink: #1c2430; --dim: #5a6675; --line: #d9dee5; --good: #17663a; --bad: #a3231b; --warn: #855600; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 1.5rem; color: var(--ink); background: #fff; line-height: 1.5;
  word-break: keep-all;
  font-family: system-ui, "Segoe UI", "Noto Sans KR", "Noto Sans CJK KR", "Malgun Gothic", "Apple SD Gothic Neo",
  sans-serif; }
small { color: var(--dim); font-size: .82em; font-weight: 400; }
h1 { font-size: 1.6rem; margin: .2rem 0 0; }
h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; padding-bottom: .25rem; border-bottom: 2px solid var(--ink); }
header { display: flex; flex-wrap: wrap; gap: 1rem; justify-content: space-between; align-items: center; }
header p { margin: 0; color: var(--dim); }
.verdict { padding: .6rem 1.2rem; border: 3px solid; border-radius: .5rem; text-align: center; font-weight: 700;
  font-size: 1.25rem; }
.verdict span { display: block; font-size: .8rem; font-weight: 400; }
.good { color: var(--good); } .bad { color: var(--bad); }
code { font-family: ui-monospace, "DejaVu Sans Mono", Consolas, monospace; font-size: .86em; overflow-wrap: anywhere; }
dl { margin: 0; }
dl div { display: grid; grid-template-columns: 14rem 1fr; gap: 1rem; padding: .3rem 0;
  border-bottom: 1px solid var(--line); }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
table { width: 100%; border-collapse: collapse; font-size: .92rem; }
th, td { padding: .4rem .6rem .4rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.long { overflow-wrap: anywhere; }
th { color: var(--dim); font-weight: 600; font-size: .82rem; }
.mark { display: inline-block; padding: 0 .5em; border: 1px solid; border-radius: 1em; font-size: .82rem;
  font-weight: 600; white-space: nowrap; }
.mark.ok { color: var(--good); } .mark.failed { color: #fff; background: var(--bad); border-color: var(--bad); }
.mark.warning { color: var(--warn); } .mark.note { color: var(--dim); }
.problems { margin: .3rem 0 0; padding-left: 1.1rem; color: var(--bad); white-space: pre-line; }
.limits ul { margin: 0; padding-left: 1.2rem; }
.lines div { display: grid; grid-template-columns: 10rem 1fr 6rem 10rem; gap: 1rem; align-items: end;
  margin-top: 2rem; }
.lines i { border-bottom: 1px solid var(--ink); }
@media (max-width: 640px) {
  body { padding: 1rem; }
  .verdict { width: 100%; }
  dl div, .lines div { grid-template-columns: 1fr; gap: 0; }
  .lines i { height: 2rem; }
  thead { display: none; }
  tr { display: block; padding: .5rem 0; border-bottom: 2px solid var(--line); }
  td { display: block; border: 0; padding: .1rem 0; }
  td:empty { display: none; }
  td:first-child::before { display: none; }
  td:not(:first-child)::before { content: attr(data-label); display: block; color: var(--dim); font-size: .75rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  section, tr, dl div { break-inside: avoid; }
  h2 { break-after: avoid; }
  .mark.failed { color: var(--bad); background: none; border-width: 2px; }
  @page { margin: 16mm; }
}
</style>
</head>
<body>
<header>
<div><p>$label_report</p><h1>$title</h1><p><code>$release</code></p></div>
<div class="verdict $class">$verdict<span>$outcome</span></div>
</header>
<section><h2>$label_summary</h2>$facts</section>
$limits
<section><h2>$label_checks</h2>
<table><thead><tr><th>$label_check</th><th>$label_result</th><th>$label_looked_at</th><th>$label_seconds</th></tr></thead>
<tbody>$sections</tbody></table></section>
<section><h2>$label_models</h2>$models</section>
<section><h2>$label_network</h2>$network</section>
<section><h2>$label_preflight</h2>$preflight</section>
<section><h2>$label_host</h2>$host</section>
<section><h2>$label_overrides</h2>$overrides</section>
<section><h2>$label_filed</h2><p><code>$data</code></p><p>sha256 <code>$digest</code></p></section>
<section class="lines"><h2>$label_signatures</h2>
<div><span>$label_operator</span><i></i><span>$label_date</span><i></i></div>
<div><span>$label_approver</span><i></i><span>$label_date</span><i></i></div>
</section>
</body>
</html>
"""
