"""What mail systems say when they do not take a message, sorted by what they mean. Data for `bounces`; pure.

Patterns are searched in a reply made plain: lower case, one blank between words, addresses, URLs and enhanced codes taken out.
The first that fits decides, so what is narrow stands before what is broad: a list of blocked hosts before a user that is
unknown, for servers say both in one breath. The words are those of Postfix, Exim, sendmail, qmail, Courier, Exchange, Domino,
OpenSMTPD, Gmail, Yahoo, Microsoft, Apple, Orange, La Poste, SFR, GMX, 1&1, Mail.ru, Yandex, QQ, 163, the Japanese carriers,
Barracuda, Cisco, Mimecast, Proofpoint, Symantec, Trend Micro, Trellix and others, as their manuals and their users quote them.
"""

from __future__ import annotations

import re
from enum import StrEnum


class Reason(StrEnum):
    # Hard, where the reply is permanent: nothing will ever arrive there.
    USER_UNKNOWN = "user_unknown"
    HOST_UNKNOWN = "host_unknown"  # the domain does not exist, or has no way for mail
    NOT_ACCEPTED = "not_accepted"  # the domain takes no mail at all: null MX (RFC 7505), 521 and 556 (RFC 7504)
    MOVED = "moved"
    # Of the mailbox, but it is there.
    MAILBOX_FULL = "mailbox_full"
    MAILBOX_DISABLED = "mailbox_disabled"
    REFUSED = "refused"  # its owner or a filter of its own does not want it; also a user said to be unknown after DATA
    # Of the message.
    MESSAGE_TOO_BIG = "message_too_big"
    SPAM = "spam"
    VIRUS = "virus"
    CONTENT = "content"  # what it contains, or how it is made
    # Of the sender, or of the one who hands it on.
    SENDER_REJECTED = "sender_rejected"
    AUTHENTICATION = "authentication"  # SPF, DKIM, DMARC
    REPUTATION = "reputation"  # a block list, the address's history, its name in DNS
    RATE_LIMITED = "rate_limited"
    RELAYING_DENIED = "relaying_denied"
    POLICY = "policy"
    SECURITY = "security"  # logins and TLS
    SYNTAX = "syntax"  # of the SMTP dialogue
    # Of the way.
    NETWORK = "network"
    SYSTEM = "system"  # the other system, or a program there, is out of order
    EXPIRED = "expired"  # tried for as long as the queue keeps it
    UNKNOWN = "unknown"
    # No failure.
    DELIVERED = "delivered"
    RELAYED = "relayed"
    EXPANDED = "expanded"


_BOX = r"(?:user|recipient|mailbox|mail box|account|address|addressee|alias|local ?part|person|destinat(?:ion|aire))"
_GONE = (
    r"(?:(?:is |was |are |were )?(?:unknown|not (?:be )?(?:known|found|exist(?:ing)?|recogni[sz]ed|listed|present|registered)|"
    r"non-?existent|"
    r"invalid)|(?:does|do|did) ?(?:not|n't) exist|doesn't exist|could ?n[o']t be found|couldn't be found|"
    r"no longer (?:exists?|valid|in use|active|available|here|on server|with us))"
)
_SENDER = r"(?:sender|from|mail from|envelope[- ]from|return[- ]path|reverse[- ]path|originator)"

_WORDS: list[tuple[Reason, str]] = [
    (Reason.SECURITY, r"\bauthentication (?:is )?(?:required|failed)\b(?! (?:to|for) relay)|user or (?:\w+ )?password"),
    (Reason.CONTENT, r"\b(?:from|to|cc|sender|recipient|message)'?:? header\b|\bheader (?:address|field|line)\b"),
    (
        Reason.SENDER_REJECTED,
        rf"\b(?:domain of )?{_SENDER}(?:'s)?(?: (?:e-?mail )?(?:address|domain))?(?: @)?:?,? (?:is |was |has been )?(?:not (?:ok|allowed|"
        r"accepted|permitted|valid)|rejected|refused|denied|unknown|invalid|unrout\w+|unresolvable|blocked|does(?: not|n't) (?:exist|"
        r"resolve)|verif\w+ (?:failed|error)|verify failed|has (?:no|null) mx)|e-?mail address is not verified|"
        rf"\b(?:unrout(?:e)?able|invalid|unknown|bad|unverified|unresolvable|blocked|blacklisted|illegal) {_SENDER}\b|"
        r"\bsender (?:address )?verif(?:y|ication) (?:failed|error)|could not verify sender|sender callout|callback .{0,30}sender|"
        r"\bcallout verification failed.{0,30}sender|"
        r"\bdomain (?:name )?of (?:the )?sender(?: address)?\b.{0,80}(?:not exist|not found|not resolve|not accepted|no mx)|"
        r"\byour (?:e-?mail |mail )?(?:domain|address)\b.{0,40}(?:not exist|not found|invalid|not valid|unknown|not resolve)|"
        r"domain (?:name )?required|"
        r"\bsender\b.{0,60}(?:not exist|not found|unknown|invalid|unresolv|no mx|rejected|denied|refused|not accepted)|"
        r"\b(?:not find|unable to find|cannot find|can't find|invalid|unknown|unresolvable|no mx for) .{0,30}sender|"
        r"\bsender (?:email |mail |domain |address ){1,2}.{0,40}(?:not exist|not found|not allowed|no mx|no valid dns)|"
        r"\b(?:your|you are|you're) .{0,40}(?:not authori[sz]ed to send|not allowed to send)|"
        r"not authori[sz]ed to send (?:mail )?(?:from|as)\b|"
        r"\b(?:no|null) mx(?: records?)? (?:\w+ ){0,3}(?:your|send(?:er|ing))\b|"
        r"\b(?:sending|originating|from|your) (?:domain|host)\b.{0,40}(?:not exist|non-?existent|not found|not resolve|"
        r"unknown|no mx)|"
        r"\bsend ?as denied|not allowed to send .{0,30}as\b|purported responsible address|backscatter protection|"
        r"\bmail from .{0,60}(?:does not exist|must (?:exist|resolve))|\badres?se? d?'?exp[eé]diteur|nullsender|"
        r"null sender (?:is )?not allowed|\babsender(?:adresse)? .{0,30}(?:nicht|abgelehnt|unbekannt)|domain in the .{0,20}sender",
    ),
    (
        Reason.AUTHENTICATION,
        r"\b(?:dmarc|dkim|spf|sender id|senderid|arc)\b.{0,80}(?:fail|reject|polic|invalid|not pass|violat|record|block|check|hard|"
        r"error|unauth|none|not authori[sz]ed|denied|mismatch|permerror|not exist|not found|missing)|"
        r"\b(?:fail(?:ed|s|ure)?|reject(?:ed)?|violat\w+|bad|invalid|invalid|unauth\w+|missing|block(?:ed)?)\b.{0,60}\b(?:dmarc|dkim|"
        r"spf)\b|\bunauthenticated (?:e-?mail|sender|message)|not authenticated.{0,40}(?:domain|sender)|sender policy framework|"
        r"\bis not (?:allowed|permitted|authori[sz]ed|designated) (?:to send|as permitted|sender).{0,80}|"
        r"does not designate .{0,60}permitted sender|"
        r"\b(?:email|message|sender|mail) (?:is |was )?(?:not|could not be|failed to be) authenticated|"
        r"signature (?:verification|check) fail|\bis not authori[sz]ed to use .{0,60}in 'mfrom'|"
        r"please authenticate your (?:mail|message)|requires? (?:that )?.{0,40}authenticated? with",
    ),
    (
        Reason.REPUTATION,
        r"\b(?:dnsbl|rbl|surbl|uribl|spamhaus|spamcop|sorbs|barracudacentral|senderscore|sender ?base|cloudmark sender intelligence|"
        r"csi\.cloudmark|trustedsource|mailspike|abusix|uceprotect|manitu|invaluement|spamrats|njabl|mail-abuse|trend ?micro (?:email "
        r")?(?:reputation|rbl)|cbl\b)|\b(?:black|block|deny|grey)[- ]?list(?:ed|ing|s)?\b(?! ?ed url)|"
        r"\b(?:low|poor|bad|negative|ip|domain|sender|senders'?|network|server|host|reputation)[- ]reputation|"
        r"reputation (?:of|is|score|filter|service|too)|\b(?:blocked|rejected|refused|denied|because of|due to|by) .{0,40}reputation|"
        r"\b(?:ip|client|host|server|connection|network|sender|address range|subnet|sending ip|source ip)\b.{0,60}\b(?:blocked|banned|"
        r"block list|rejected due to|is on (?:a|our|the) list|listed (?:in|at|by|on))\b|"
        r"\b(?:blocked|banned|listed|rejected|refused|denied) .{0,30}\b(?:ip\b|ip address|client|host(?!name)|network|sending ip|isp|"
        r"subnet|your server)|"
        r"\bbanned sending ip|access denied.{0,20}banned|blocked using|blocked by|is blocked\b|has been blocked|were blocked|"
        r"was blocked by|\bconnections? (?:from|to) .{0,80}(?:blocked|refused by policy|not accepted|rejected)|"
        r"connections? not accepted|refuse to talk to you|\bno reverse dns|reverse dns|ptr record|\bptr\b|rdns|"
        r"\breverse (?:dns )?lookup|\bip(?: address)? @?.{0,40}not exist|"
        r"\b(?:your|client|sending|connecting) (?:mail )?(?:host ?name|server(?: name)?|ip(?: address)?)\b.{0,40}"
        r"(?:not (?:exist|found|resolve)|unknown|invalid)|"
        r"without a (?:valid )?(?:ptr|sender domain|reverse)|cannot find your (?:reverse )?hostname|"
        r"\bcannot (?:resolve|find) your (?:address|hostname|ip)|unresolvable (?:relay )?(?:host|client)|"
        r"(?:your|client|sending|helo|connecting) host ?name .{0,30}does not (?:match|resolve)|\bmismatch\w* (?:client|ip)|"
        r"client host rejected|your host(?:name)? .{0,40}(?:rejected|denied)|"
        r"(?:helo|ehlo)\b.{0,40}(?:reject|invalid|access denied|unknown|"
        r"not (?:valid|accept|resolve|found|exist))|dynamic (?:ip|host|address|pool)|dial-?up|"
        r"residential ip|bad helo|looks like a (?:dynamic|spam)|\bservice (?:unavailable|refused)[;,] (?:client|sending)|"
        r"not accepting (?:e?mail|connections?|messages?) from (?:your|this|that|the)|"
        r"\byou (?:are|have been) (?:blocked|blacklisted|banned|not allowed to connect)|"
        r"unsolicited (?:mail|e-?mail|messages) (?:from|originating)|"
        r"\b(?:suspicious|abuse|abusive|spam|unusual) .{0,30}(?:from|by) (?:your|this) (?:ip|server|host|network|domain|isp)|"
        r"\byour e-?mail is redundant|we do(?: not|n't) accept (?:e-?)?mail from (?:this|your)|bad sender ip|"
        r"temporarily deferred due to (?:user complaints|unexpected volume)|"
        r"\b(?:mail|e-?mail|message) from (?:this|your|the) (?:ip|server|host|network|domain)\b.{0,40}(?:refused|rejected|blocked|not "
        r"accepted|denied)|\bdue to user complaints|intrusion prevention|\bcomplaints\b|\bnot on the (?:allow|white)list",
    ),
    (
        Reason.VIRUS,
        r"\bvirus(?:es)?\b|\bmalware\b|\bworm\b|\btrojan\b|infected|\bexploit\b|dangerous (?:file|attachment)|mcspamsignature|\bphish",
    ),
    (
        Reason.RELAYING_DENIED,
        r"\brelay(?:ing)?(?: access)?(?: is| was| to| mail to| through)?(?: this| that| the)?(?: server| host)? ?(?:denied|not "
        r"(?:permitted|allowed|accepted|authori[sz]ed)|prohibited|rejected|refused|forbidden|disabled|restricted|attempt)|"
        r"relay (?:operation )?rejected|unable to relay|cannot relay|can't relay|not relay(?:ing)?\b|"
        r"\bnot (?:permitted|allowed|authori[sz]ed|configured) to relay|no relay(?:ing)?\b|insecure mail relay|mail relay|"
        r"refus\w+ to relay|relaying (?:blocked|mail)|we do(?: not|n't) relay|"
        r"\b(?:not|isn't) (?:in|on) my (?:list of allowed rcpthosts|rcpthosts)|allowed rcpthosts|relaying not|"
        r"this is not (?:a|an) (?:open )?relay|relay not|\bauthenticat(?:e|ion) (?:is )?(?:required|needed) (?:to|for) relay|"
        r"not a gateway|not (?:a )?local (?:domain|host)|domain not (?:local|hosted) here",
    ),
    (
        Reason.RATE_LIMITED,
        r"\btoo many (?:\w+ ){0,3}(?:connections?|messages?|mails?|e-?mails?|recipients?|sessions?|rcpts?|errors|concurrent|smtp|"
        r"requests|attempts|invalid|unknown|bad)|"
        r"\b(?:rate|frequency|connection|connections|throughput|sending|daily|hourly|message|messages|concurrency|recipients?|volume) "
        r"?-?(?:rate )?(?:limit(?:s|ed|ing)?|quota|control|throttl\w+)\b(?! on (?:size|length))|\bthrottl(?:ed|ing)|ip frequency|"
        r"\bslow down|receiving mail (?:too quickly|at a rate)|\bmail(?:s)? (?:at a rate|too (?:fast|quickly|often))|"
        r"exceed\w* .{0,40}(?:rate|per (?:hour|day|minute|connection|session)|connections|hourly|daily|max(?:imum)? number|recipients)|"
        r"\b(?:deferred|limited) due to (?:rate|volume)|unusual rate|try(?:ing)? too (?:often|fast)|reached .{0,40}limit|"
        r"out ?of ?memory sending|sending limit|\b(?:message|recipient|connection) count exceed|greylist|grey-list|gr[ea]y listed|"
        r"excessive (?:unknown|number|recipients|messages)|\bmaximum (?:number of )?(?:concurrent )?(?:connections|recipients|messages)",
    ),
    (
        Reason.MESSAGE_TOO_BIG,
        r"\b(?:message|mail|e-?mail|msg|content|body|attachment|letter|data|file)s?(?: \w+){0,4} (?:too (?:big|large|long)|(?:size|"
        r"length)\b.{0,40}(?:exceed|limit|too|larger|greater|over)|exceed\w*.{0,30}(?:size|length|fixed|limit|maximum|administrative)|"
        r"is larger than|larger than|oversized?)|"
        r"\bexceed\w* .{0,40}\b(?:message size|size limit|maximum size|file size|message length|max(?:imum)? (?:message|mail) size|"
        r"fixed (?:maximum|limit))|size limit|\bmax(?:imum)? (?:message|mail|msg) size|too (?:big|large) (?:for|to|message|mail)|"
        r"over(?:sized| size| the maximum) (?:message|mail|limit)|message length exceeds",
    ),
    (
        Reason.MAILBOX_FULL,
        r"\b(?:over|exceed\w*|out of|above|reached|beyond|past|hit|surpassed) ?(?:the |its |their |his |my |your |allowed |allotted |"
        r"disk |storage |mail |mailbox |user |size |e-?mail |space |maximum |current ){0,4}(?:quota|allocation|storage|disk space|size "
        r"limit|capacity)|"
        r"\b(?:over|out ?of|exceeded?)[- ]?quota|overquota|quota (?:has been |is |was |limit )?(?:exceed|full|violat|reach|over|error)|"
        r"\bquota\b|"
        r"\b(?:mail ?box|mail drop|maildrop|mailfolder|mail folder|inbox|account|storage|user'?s? box|spool|folder|disk|maildir)(?: "
        r"\w+){0,3} (?:is |has |are |was )?(?:currently |too |almost )?(?:full|over (?:quota|limit)|exceed\w*)|mailbox_?full|"
        r"full mailbox|mailbox has (?:exceeded|reached)|insufficient (?:system storage|disk|storage|space|quota)|"
        r"\b(?:not enough|no) (?:disk |free |storage |more )?(?:space|storage)|no space left|disk full|disc quota|mailbox size|"
        r"too much mail|too many messages in|number of messages in .{0,40}exceed|total mailbox size exceed|quotaexceed|"
        r"\b(?:inbox|mailbox|account|user) (?:for .{0,40})?(?:is |are )?(?:full|too full|over)|has run out of space|"
        r"has too many messages|maximum .{0,30}stored|storage (?:limit|exceeded|allocation|full)|"
        r"\bpostfach .{0,30}(?:voll|überfüllt|ueberfuellt)|bo[iî]te .{0,40}pleine|buz[oó]n .{0,30}lleno|casella .{0,30}piena|"
        r"caixa .{0,30}cheia|ящик .{0,20}(?:переполнен|заполнен)|ящик переполнен|(?:邮箱|郵箱|信箱|邮件|空间)"
        r".{0,12}(?:已满|已滿|满|不足|超)|"
        r"容量.{0,12}(?:超|満|オーバー)|満杯|メールボックス.{0,16}(?:一杯|いっぱい)",
    ),
    (
        Reason.SPAM,
        r"\bspam\b|\bspamm|\bspammy|\bjunk (?:mail|e-?mail)|\bunsolicited|\bbulk (?:mail|e-?mail)|\bspamassassin|"
        r"message (?:looks|appears) (?:like|to be)|blacklisted url|spam-?like|identified as spam|\buce\b|"
        r"\bcontent (?:was |is )?(?:rejected|filter\w*|blocked)|likely (?:unsolicited|suspicious)|"
        r"rejected by (?:the )?(?:anti-?spam|content filter|bayes)|score (?:of|too|is|exceed)|"
        r"\bmessage (?:was |has been |is )?(?:detected|classified|considered|scored|marked) (?:as|to be)|high probability|"
        r"suspicious (?:content|message|mail|url|link)|\bhormel\b",
    ),
    (
        Reason.MOVED,
        r"\b(?:user|recipient|mailbox|address|account|person|he|she|they)(?: @)? (?:has |have |was |is )?(?:moved|been moved|"
        r"transferred|relocated|changed (?:to|address))|has moved to|moved to (?:@|a new)|"
        r"\bno longer (?:on server|with (?:the|this) (?:company|organi[sz]ation))|replaced by @|new (?:e-?mail )?address (?:is|:)|"
        r"address has changed|has changed (?:his|her|their) (?:e-?mail )?address|\buser not local[;,:]? (?:please )?(?:try|will forward)",
    ),
    (
        Reason.NOT_ACCEPTED,
        r"\bnull ?mx\b|does(?: not|n't) (?:accept|receive|handle|take) (?:any )?(?:e-?mail|mail|smtp)\b(?! from)|"
        r"(?:host|domain)(?:/domain)? (?:@ )?(?:does(?: not|n't)|never) (?:accepts?|receives?) (?:e-?)?mail|"
        r"mail receiving (?:is )?disabled|\bno mail (?:is )?accepted here|"
        r"do(?: not|n't) accept (?:any )?(?:e-?)?mail (?:here|at (?:this|all))|server does not accept mail|"
        r"not accept(?:ing)? (?:any )?(?:e-?)?mail (?:for|to) (?:this|the|that) (?:domain|host)|"
        r"smtp protocol returned a permanent error: no mail|\bdomain .{0,60}has no mail exchangers|"
        r"this (?:host|server|machine) (?:does|will) not (?:accept|receive) (?:e-?)?mail|no smtp service|indicated no smtp|"
        r"(?:not|n't) run(?:ning)? (?:an )?smtp|no mail service",
    ),
    (
        Reason.EXPIRED,
        r"\bretry time(?:out)? (?:not reached|exceeded)|in the queue too long|"
        r"\b(?:message|delivery time|delivery|envelope|queue\.)\s?expired|cannot send (?:message|mail) (?:for|within) \d|"
        r"\bcould not be delivered (?:for|within|after) \d|delivery failed \d+ attempts|was aborted after|undelivered after \d|"
        r"exceeded .{0,20}(?:retry|delivery) (?:time|attempts|limit)|no action is required on your part",
    ),
    (
        Reason.NETWORK,
        r"host not found, try again|name:? lookup failure|lookup did not complete|"
        r"(?:temporary|transient|temporarily) .{0,30}(?:dns|name|lookup|resol)|"
        r"(?:dns|name server|nameserver|name service|name resolution|name lookup|lookup|resolv\w+)\b.{0,60}\b(?:tim(?:e|ed)[- ]?out|try "
        r"again|temporar\w+|servfail|refused|soft error)|\bserver failure\b|\btoo many hops|hop count|mail (?:forwarding )?loop|"
        r"routing loop|loop(?:s|ing)? (?:detected|back to)|loops back to myself|would create a (?:mail(?:er)? )?loop|maximum hop|"
        r"redirection count|mail for .{0,80}loops|\bcname lookup failed temporarily|"
        r"mx (?:records?|list|hosts?) .{0,60}(?:point\w*|refer\w*) (?:back )?to (?:myself|local|itself|me)|lowest numbered mx|"
        r"config error: mail loops|receive-?loop",
    ),
    (
        Reason.HOST_UNKNOWN,
        r"\b(?:host|domain|domain name|host name|hostname|mail host|destination host|server|mail domain|recipient domain|destination "
        r"domain|destination server|site|machine|node)s?(?: @)?(?: (?:name|address|lookup))?(?: [\w.-]+\.[a-z]{2,})?[:,]? (?:is |was |"
        r"are |could |did |does |can )?(?:unknown|not (?:be )?(?:found|exist(?:ing)?|known|resolved|reachable|located|valid)|"
        r"non-?existent|invalid|cannot be (?:found|resolved|reached)|(?:not|n't) exist|unreachable by dns|not reachable)|"
        r"\b(?:does|do) ?(?:not|n't) exist .{0,10}(?:domain)|"
        r"domain .{0,60}(?:does(?: not|n'?t) exist|could(?: not|n't) be found|couldn't be found|not found|is not reachable|does not "
        r"resolve)|\bno such (?:host|domain)|"
        r"\b(?:unknown|bad|invalid|illegal|nonexistent|non-existent|unrout(?:e)?able|unroutable mail) (?:destination )?(?:mail "
        r")?(?:host|domain|system|server)|nxdomain|name or service not known|host or domain name not found|\bnode(?:name)? nor servname|"
        r"no address associated with|"
        r"no (?:dns|mx|a|mail exchanger|mx or a|a or mx) (?:a or mx )?(?:record|entry|data|host|hosts|dns data|server)s?(?:\b| (?:found|"
        r"for))|\bcouldn't find any host|couldn't find (?:a |any )?(?:host|mail exchanger)|"
        r"no mail ?(?:server|exchanger|host)s? (?:found|for|could)|unrout(?:e)?able (?:address|mail domain|domain)|"
        r"all relevant mx records point to non-?existent|\bhost @? ?(?:was )?not found|"
        r"unable to (?:find|look ?up|resolve) .{0,60}(?:host|domain|mx)|dns (?:hard )?error looking up|"
        r"recipient domain .{0,20}not exist|cannot resolve (?:the )?(?:domain|host)|all host address lookups failed permanently|"
        r"remote domain does ?n'?t exist|no such domain|no mx host for .{0,80}has a valid address|dns domain .{0,60}does not exist|"
        r"nonexistentdomain|unable to look up host|(?:domain|host) name (?:is )?not (?:found|recogni[sz]ed)|\bdomain isn't in my|"
        r"unknown host|bad destination (?:host|system)|destination (?:host|system) address|mail server for .{0,60}unknown|"
        r"the domain (?:name )?(?:part )?.{0,30}(?:is not valid|wrong)",
    ),
    (
        Reason.MAILBOX_DISABLED,
        r"\b(?:account|mailbox|mail box|user|recipient|address|email|e-mail|mail)(?:'s)?(?: @)?(?: \w+){0,4} (?:is |are |was |were |has "
        r"been |have been |currently |temporarily ){0,3}(?:disabled|deactivated|inactive|suspended|locked|de-?activated|dormant|not "
        r"active|not activated|on hold|frozen|terminated|discontinued|closed|expired|blocked|unavailable temporarily)\b|"
        r"\b(?!inactive e-?mail address)(?:disabled|deactivated|inactive|suspended|locked|dormant|frozen|expired|terminated) (?:e-?mail "
        r"|mail )?(?:account|mailbox|user|recipient|address)|"
        r"(?:account|mailbox) (?:that .{0,40})?(?:is |has been )?(?:disabled|inactive|suspended)|\bnot accepting (?:messages|mail)|"
        r"mailbox (?:is )?(?:unavail?able|not available)[^a-z]{0,3}(?:at (?:this time|the moment)|for now|right now|temporarily|"
        r"(?:please )?try (?:again )?later)|"
        r"boite du destinataire archivee|user(?:'s)? (?:mail )?(?:is )?disabled|vacation\b.{0,20}suspend|"
        r"mailbox temporarily (?:disabled|unavailable|locked)|mailbox currently (?:suspended|unavailable)|"
        r"\bemail account .{0,50}(?:inactive|disabled)|domain (?:has been|is) (?:disabled|suspended)|recipient suspend|"
        r"ящик .{0,20}(?:отключ|заблок)|gesperrt|(?:帐号|账号|邮箱).{0,8}(?:停用|冻结|禁用|锁定)|利用停止",
    ),
    (
        Reason.REFUSED,
        r"\b(?:user|recipient|address|account|mailbox) (?:@ )?(?:has )?(?:refuse[sd]?|reject(?:s|ed)|restrict(?:s|ed)|block(?:s|ed)|"
        r"does(?: not|n't) (?:accept|want|wish)|only accepts?|is not accepting|is no longer accepting|not accept(?:ing)?|is restricted|"
        r"has not (?:given|granted)|refused to) (?:to accept |receiving |receive |your |this |the |mail|e-?mail|messages|incoming|any |"
        r"from )|not on (?:the|its) (?:recipient's )?(?:allow|safe|accepted)|"
        r"(?:only )?(?:accepts?|allows?) (?:mail|messages|e-?mail) (?:only )?from|"
        r"\b(?:permission|permitted|allowed|authori[sz]ed) to (?:post|send|e-?mail|mail|write) (?:messages )?to|resolver\.rst\.|"
        r"(?:group|list) .{0,60}(?:may not exist|might not exist|not (?:have )?permission)|moderated|not (?:a )?(?:list )?member|"
        r"subscribers? only|\bgoogle groups|sender not authenticated for this recipient|recipient (?:has )?(?:challenge|whitelist)|"
        r"due to (?:extended inactivity )?recipient (?:preference|setting)|recipient preferences|rcp-p[23]\b|user filter|"
        r"recipient(?:'s)? (?:mail )?filter|blocked by (?:the )?(?:user|recipient)|discarded by",
    ),
    (
        Reason.USER_UNKNOWN,
        rf"\b{_BOX}(?: name| address| e-?mail| email name| @|s)?(?:\(s\))?:? {_GONE}|"
        r"\b(?:no|unknown|nonexistent|non-existent|invalid|bad|illegal|incorrect|wrong|undeliverable|unrecogni[sz]ed|unknown or illegal|"
        r"inexistent|no valid|not a valid|not an? (?:active|existing|known|valid|recogni[sz]ed|legal)) (?:local |such |e-?mail |email |"
        rf"mail |virtual |destination |remote |final |envelope |smtp |address or ){{0,3}}(?:{_BOX}|e-?mail|local-part|name|rcpt|"
        r"destination mailbox)s?\b|"
        rf"\bno (?:such|known|valid|matching) .{{0,30}}(?:{_BOX}|local users?|here)|"
        r"no (?:mail ?box|account|one|user|person|recipient)s? (?:found|by that name|here|at this address|with (?:this|that) name|named|"
        r"of that name|for)|there is no (?:one|such|user|account|mailbox)|\buserunknown|user_unknown|unknown[- _]user|"
        r"invalid[- _]recipient|unknown[- _]recipient|user not (?:exist|here|active|local)|not our customer|not a customer|"
        r"notfound by smtp|recipientnotfound|recipient ?not ?found|adr\.(?:ex)?(?:recip|inval)\w*|rcp-p1\b|returned unknown recipient|"
        r"not listed in (?:the )?(?:public |domino )?(?:name|directory)|badrecipient|bad rcpt|bad recipient|"
        r"\baddress (?:was )?(?:rejected|not present|could not be found|couldn't be found|not found)(?! (?:by|due|because|for))(?!:)|"
        r"(?:the )?(?:e-?mail )?address .{0,60}(?:couldn't be found|could not be found|wasn't found|was not found|is not valid|does not "
        r"exist|doesn't exist|unable to receive)|couldn't be found or is invalid|\baddresses? (?:were|was) unknown|"
        r"(?:recipient|destination) address(?:es)? (?:rejected|refused): (?:user|unknown|undeliverable|"
        r"unverified|no such|not found|invalid|recipient|does not|this (?:address|user)|mailbox|non-?existent|address)|"
        r"recipient address rejected(?: \(|\.|$)|\brejected recipient|"
        r"recipients? (?:was |were |is |not )?(?:rejected(?! (?:by|due|because|for))$|ok)|recipient not ok|"
        r"does(?: not|n't) (?:exist|have an? (?:\S+ )?account|like recipient$)|doesn't have a|"
        r"not (?:listed|found) in .{0,40}(?:directory|address book|table|name ?and ?address)|user isn't|"
        r"\bis not a (?:known|valid|local|registered) |not (?:known|valid) at this|validrcptto|badrcptto|recipient (?:has been )?denied|"
        r"mailbox (?:is )?(?:unavail?able|not available|invalid)(?! (?:due to|because of) (?:\w+ ){0,3}polic)|"
        r"(?:account|address) (?:is )?(?:unavailable|not available)|"
        r"inactive e-?mail address|"
        r"\b(?:account|mailbox|user|address) (?:has been |was |is )?(?:deleted|removed|cancell?ed|deprovisioned)|account is no longer|"
        r"address (?:is )?no longer|no longer (?:accepts|receives?) (?:e-?)?mail|user missing home|"
        r"unable to (?:find|locate|deliver to) (?:the )?(?:user|recipient|mailbox|account)|"
        r"can(?:not|'t) (?:find|accept) (?:the )?(?:user|recipient|address)|unknown in (?:local|virtual|relay)|user lookup fail|"
        r"\ball recipient addresses rejected|delivery not to be handled|address not found|not deliverable address|"
        r"unknown address(?! error)|unknown to (?:this|the) (?:system|server)|not a (?:known|valid) |isn't a valid|no valid recipients|"
        r"invalid user|malformed .{0,10}recipient|syntax error in (?:recipient|mailbox) address|"
        r"bad destination (?:mailbox|e-?mail) address|\bunbekannte[rn]? (?:benutzer|empf[äa]nger|nutzer|adresse)|"
        r"(?:benutzer|empf[äa]nger|postfach|nutzer|adressat|adresse|teilnehmer)\b.{0,40}(?:unbekannt|existiert nicht|nicht (?:gefunden|"
        r"bekannt|vorhanden))|existiert nicht|gibt es nicht|utilisateur inconnu|destinataire (?:inconnu|inexistant|invalide)|"
        r"adresse (?:d\W?au moins un )?(?:du )?(?:destinataire )?(?:invalide|inconnue|inexistante|n'existe)|boi?te .{0,30}inexistante|"
        r"n'existe pas|bo[iî]te (?:aux lettres |du destinataire )?inconnue|usuario (?:desconocido|no (?:existe|encontrado|v[aá]lido))|"
        r"destinatario (?:desconocido|no existe|inesistente|sconosciuto|inv[aá]lido)|no existe (?:ese|dicha|el|la|este)|"
        r"utente (?:sconosciuto|inesistente|non trovato)|nessun utente|indirizzo (?:inesistente|sconosciuto|non valido)|"
        r"usu[aá]rio (?:desconhecido|n[aã]o (?:existe|encontrado)|inexistente)|conta .{0,20}(?:inexistente|n[aã]o existe)|"
        r"destinat[aá]rio (?:n[aã]o existe|desconhecido|inexistente)|gebruiker (?:onbekend|bestaat niet)|"
        r"onbekende (?:gebruiker|ontvanger)|nie (?:istnieje|znaleziono)|nieznany u[żz]ytkownik|uživatel .{0,10}(?:neexistuje|neznámý)|"
        r"пользовател\w+ .{0,30}не (?:найден|существует|зарегистрирован)|"
        r"(?:ящик|адрес|получател\w+|пользовател\w+)(?: \S+){0,3} не (?:найден|существует)|неизвестный (?:пользователь|получатель)|"
        r"(?:用户|用戶|收件人|邮箱|郵箱|帐号|账号|地址|邮件地址)(?:\S{0,12})?(?:不存在|无效|無效|未找到|找不到|不正确)|不存在的?(?:用户|收件人|邮箱)|"
        r"(?:宛先|あて先|ユーザー?|メールアドレス|受信者|アドレス).{0,24}(?:見つかりません|みつかりません|存在しません|不明|ありません|間違)|宛先不明|사용자.{0,12}(?:없|존재하지)",
    ),
    (
        Reason.SECURITY,
        r"\bstarttls\b|\btls\b.{0,40}(?:required|fail|handshake|error|not)|certificate|"
        r"authentication (?:required|fail|is required|needed|turned on|credentials|unsuccessful|error)|"
        r"\bauth(?:entication)? (?:fail|required|error)|must (?:authenticate|issue a starttls)|encryption required|"
        r"login (?:fail|denied)|not logged in|bad (?:username|password|credentials)|dane\b|mta-sts",
    ),
    (
        Reason.SYNTAX,
        r"\b(?:improper|bad|invalid|out of) (?:sequence|order) of commands|bad sequence|syntax error|"
        r"command (?:unrecogni[sz]ed|not (?:implemented|recogni[sz]ed|supported))|unrecogni[sz]ed command|unknown command|"
        r"unexpected command|need (?:mail|rcpt)|protocol (?:error|violation)|pipelining",
    ),
    (
        Reason.CONTENT,
        r"\b(?:duplicate|multiple|missing|invalid|malformed|bad|illegal|non-?compliant) (?:\w+ ){0,3}(?:header|headers|message-id|"
        r"address\w* in|from:?|date|subject|line|mime|encoding|attachment|character)|rfc ?(?:2822|5322|822|2045|7103) ?\w*|"
        r"header (?:error|syntax|size|too)|bare (?:lf|cr|linefeed|newline)|line too long|"
        r"\b(?:attachment|file ?name|extension|file type|content type|message content|content|body|html|url|link)s?\b.{0,60}(?:not "
        r"allowed|prohibited|rejected|forbidden|blocked|not (?:permitted|accepted)|banned|denied|potential|security)|not rfc|8-?bit|"
        r"smtputf8|internationali[sz]ed|conversion (?:required|not)|message (?:format|malformed)|not compliant|encrypted",
    ),
    (
        Reason.POLICY,
        r"\bpolic(?:y|ies)\b|administrative(?:ly)? (?:prohibit\w*|reject\w*|den(?:y|ied)|forbid\w*)|"
        r"\b(?:rejected|denied|refused|prohibited|forbidden|not allowed|not permitted) (?:by|due to|for|because of) |"
        r"access (?:denied|not allowed)|administrator|prohibited by|not (?:allowed|permitted|authori[sz]ed)|permission denied|"
        r"transport ?rules?|local rule|by rule|disallowed",
    ),
    (
        Reason.EXPIRED,
        r"\b(?:delivery|retry|queue|message|envelope|time|timeout|retry time|lifetime|time-to-live|mail)\b.{0,40}\b(?:expired|exceeded|"
        r"time(?:d)? ?out|too (?:old|long))|(?:too long in|in the|on) (?:the )?queue (?:for )?(?:too long|longer)|"
        r"retry time(?:out)? (?:not reached|exceeded)|gave up|giving up|could not be delivered (?:for|within|in) \d|"
        r"\b(?:not|n't) (?:be )?(?:delivered|sent|deliver|send) (?:the )?(?:message |mail )?(?:for|within|in|after) (?:the )?(?:past |"
        r"last )?\d|delivery attempts?|delivery (?:time|failed \d+|attempt)|aborted after|been in the queue|undelivered after|"
        r"will be (?:deleted|removed) from (?:the )?queue|cannot send (?:message|mail) for|exceeded .{0,30}(?:retr|attempts|time)|"
        r"maximum (?:retries|time|retry)|no answer from|will not (?:be retried|try again)|queue(?:d)? (?:too|time)",
    ),
    (
        Reason.NETWORK,
        r"\bconnect(?:ion|ed|ing)?\b.{0,60}\b(?:timed? ?out|refused|reset|lost|dropped|failed|closed|broken|terminated|unexpectedly|"
        r"died|aborted|error)|\b(?:timed? ?out|timeout)\b|network (?:is )?(?:unreachable|error|down|problem)|no route to host|"
        r"host (?:is )?(?:unreachable|down)|operation timed|lost (?:connection|input)|"
        r"unable to (?:connect|contact|reach|establish|route)|could not (?:connect|contact|reach|open)|"
        r"\bcan(?:'t|not) (?:connect|contact|reach)|socket error|"
        r"remote (?:host|server|mail server) (?:is )?(?:not responding|unavailable|down|did not respond)|"
        r"did(?: not|n't) (?:accept our requests|respond|answer)|not (?:respond|reachable|answer)\w*|"
        r"conversation with .{0,80}(?:timed|lost)|dns (?:error|lookup|failure|problem|query)|name service error|"
        r"domain name (?:system|server)|gateway for|delivery (?:to the .{0,30})?temporarily suspended|broken pipe|"
        r"all hosts .{0,40}(?:fail|unreach)|no connection|bad connection|read error|write error|smtp error .{0,20}before",
    ),
    (
        Reason.SYSTEM,
        r"\b(?:internal|system|server|local|temporary|unexpected|processing|configuration|database|i/o|resource|resources|software|ldap|"
        r"backend|lookup|unknown mailer|service|remote protocol|delivery|mail server|mailer) ?(?:error|failure|problem|fault|"
        r"overload\w*|busy|unavailable|temporarily|down|shutting|not available)|"
        r"service (?:currently |temporarily )?(?:unavailable|not available|refus\w+)|try (?:again )?later|please retry|"
        r"temporar(?:y|ily)|system not accepting (?:network )?messages|"  # RFC 3463 §3.4, X.3.2: for maintenance, as it says
        r"\b(?:system|server|service) (?:is )?(?:currently |temporarily )?(?:busy|overload\w*|unavailable|not available|down|shut)|"
        r"out of memory|insufficient (?:memory|resources)|cannot (?:open|create|write|read|allocate|find lock|append|exec|lock)|"
        r"can't (?:create|open|lock|write)|couldn't (?:create|open|lock|write)|command (?:died|failed|time limit|output)|"
        r"returned (?:non-?zero|status)|exit(?:ed)? (?:status|code|with)|unknown mailer error|status \d+|procmail|maildrop|"
        r"deliver(?:y)? (?:program|agent|error)|pipe to|\b(?:directory|file)\b.{0,40}(?:not (?:found|exist)|no such)|no such file|"
        r"i/o error|read-only|unable to contact|lmtp|bad file|\bbug\b|duplicated message-id|loop alert|"
        r"mail(?:er)? (?:configuration|daemon) (?:error|problem)|transaction failed|assertion|segmentation|panic",
    ),
]

WORDS: tuple[tuple[Reason, re.Pattern[str]], ...] = tuple((reason, re.compile(words)) for reason, words in _WORDS)
